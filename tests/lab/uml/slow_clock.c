/* Preloaded into a User-mode Linux: its clock runs SLOW_CLOCK times slower than the machine's, as do its timers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static long long slower = 1;
static long long began[2]; /* CLOCK_REALTIME is 0, CLOCK_MONOTONIC 1 */
static int (*set_timer)(timer_t, int, const struct itimerspec *, struct itimerspec *);

static long long nanoseconds(const struct timespec *at) { return at->tv_sec * SECOND + at->tv_nsec; }

static struct timespec timespec_of(long long ns) { return (struct timespec){ns / SECOND, ns % SECOND}; }

__attribute__((constructor)) static void begin(void) {
    const char *factor = getenv("SLOW_CLOCK");
    struct timespec now;
    set_timer = dlsym(RTLD_NEXT, "timer_settime");
    for (clockid_t clock = 0; clock < 2; clock++) {
        syscall(SYS_clock_gettime, clock, &now);
        began[clock] = nanoseconds(&now);
    }
    slower = factor ? atoll(factor) : 1;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    long result = syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC))
        *at = timespec_of(began[clock] + (nanoseconds(at) - began[clock]) / slower);
    return result;
}

int timer_settime(timer_t timer, int flags, const struct itimerspec *wanted, struct itimerspec *old) {
    struct itimerspec longer = {
        timespec_of(nanoseconds(&wanted->it_interval) * slower),
        timespec_of(nanoseconds(&wanted->it_value) * slower),
    };
    return set_timer(timer, flags, &longer, old);
}
