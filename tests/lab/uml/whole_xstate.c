/* For User-mode Linux on a processor that has more registers than it knows (AMX).
 *
 * Linux takes the extended registers of a traced process as a whole only: PTRACE_SETREGSET gives EFAULT for a shorter
 * buffer, and User-mode Linux (seen with 6.1 and 6.12) has one of what processors had before: its init never starts.
 * Those that it does not know stay as they are. LD_PRELOAD=whole_xstate.so linux.uml ... */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

static _Thread_local char whole[1 << 16] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...)
{
	static long (*real)(enum __ptrace_request, pid_t, void *, void *);
	static int longer;
	va_list words;
	va_start(words, request);
	pid_t pid = va_arg(words, pid_t);
	void *address = va_arg(words, void *), *data = va_arg(words, void *);
	va_end(words);

	if (!real)
		real = dlsym(RTLD_NEXT, "ptrace");
	if (request != PTRACE_SETREGSET || address != (void *)NT_X86_XSTATE)
		return real(request, pid, address, data);
	if (!longer) {
		long set = real(request, pid, address, data);
		if (set == 0 || errno != EFAULT)
			return set;
		longer = 1;
	}
	struct iovec *known = data, all = { whole, sizeof whole };
	if (real(PTRACE_GETREGSET, pid, address, &all) != 0)
		return -1;
	memcpy(whole, known->iov_base, known->iov_len);
	return real(request, pid, address, &all);
}
