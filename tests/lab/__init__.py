"""A lab of real tools on one machine: KVM hosts, guests and sshds on loopback, for the tests and the demo."""
