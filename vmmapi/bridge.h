/*
 * The C side of the bridge to libvmmapi (FreeBSD 15).
 *
 * Each function answers 0 or an errno value, taken before anything else can
 * change it. Whatever the library keeps in a static or thread-local buffer is
 * copied here, in the same call, which stays on one thread.
 */
#ifndef BRIDGE_H
#define BRIDGE_H

#include <sys/param.h>

/* Before the headers below, which older releases lack or fill differently. */
#if defined(__FreeBSD__) && __FreeBSD_version < 1500000
#error "package vmmapi needs FreeBSD 15 or later: build there, cross-build with its headers (docs/freebsd.md), or leave libvmmapi out with CGO_ENABLED=0"
#endif

#include <sys/cpuset.h>
#include <sys/sysctl.h>
#include <sys/time.h>

#include <machine/vmm.h>
#include <dev/vmm/vmm_mem.h>

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <vmmapi.h>

/*
 * The library mostly answers -1 with errno set; some functions pass on an
 * errno-like value from within.
 */
static inline int
bridge_errno(int r)
{
	if (r == 0)
		return (0);
	if (r > 0)
		return (r);
	return (errno != 0 ? errno : EIO);
}

static inline int
bridge_create(const char *name)
{
	return (bridge_errno(vm_create(name)));
}

static inline int
bridge_open(const char *name, struct vmctx **ctx)
{
	*ctx = vm_open(name);
	return (*ctx != NULL ? 0 : bridge_errno(-1));
}

static inline int
bridge_reinit(struct vmctx *ctx)
{
	return (bridge_errno(vm_reinit(ctx)));
}

static inline int
bridge_suspend(struct vmctx *ctx, enum vm_suspend_how how)
{
	return (bridge_errno(vm_suspend(ctx, how)));
}

static inline int
bridge_system_memory(struct vmctx *ctx, uint64_t *size)
{
	char name[16];
	size_t len = 0;
	int error;

	error = bridge_errno(vm_get_memseg(ctx, VM_SYSMEM, &len, name,
	    sizeof(name)));
	*size = len;
	return (error);
}

static inline int
bridge_setup_memory(struct vmctx *ctx, uint64_t size, int wired)
{
	vm_set_memflags(ctx, wired ? VM_MEM_F_WIRED : 0);
	return (bridge_errno(vm_setup_memory(ctx, size, VM_MMAP_ALL)));
}

/*
 * A vCPU handle is no more than a pair of the VM and a number, so it is made
 * for each call.
 */
#define BRIDGE_VCPU(ctx, id, vcpu, call) do {				\
	struct vcpu *vcpu = vm_vcpu_open((ctx), (id));			\
	int bridge_error = bridge_errno(call);				\
	vm_vcpu_close(vcpu);						\
	return (bridge_error);						\
} while (0)

static inline int
bridge_set_register(struct vmctx *ctx, int id, int reg, uint64_t v)
{
	BRIDGE_VCPU(ctx, id, vcpu, vm_set_register(vcpu, reg, v));
}

static inline int
bridge_get_register(struct vmctx *ctx, int id, int reg, uint64_t *v)
{
	BRIDGE_VCPU(ctx, id, vcpu, vm_get_register(vcpu, reg, v));
}

static inline int
bridge_set_desc(struct vmctx *ctx, int id, int reg, uint64_t base,
    uint32_t limit, uint32_t access)
{
	BRIDGE_VCPU(ctx, id, vcpu, vm_set_desc(vcpu, reg, base, limit, access));
}

static inline int
bridge_get_desc(struct vmctx *ctx, int id, int reg, uint64_t *base,
    uint32_t *limit, uint32_t *access)
{
	BRIDGE_VCPU(ctx, id, vcpu, vm_get_desc(vcpu, reg, base, limit, access));
}

static inline int
bridge_set_capability(struct vmctx *ctx, int id, enum vm_cap_type cap, int v)
{
	BRIDGE_VCPU(ctx, id, vcpu, vm_set_capability(vcpu, cap, v));
}

static inline int
bridge_get_capability(struct vmctx *ctx, int id, enum vm_cap_type cap, int *v)
{
	BRIDGE_VCPU(ctx, id, vcpu, vm_get_capability(vcpu, cap, v));
}

static inline int
bridge_reset_vcpu(struct vmctx *ctx, int id)
{
	BRIDGE_VCPU(ctx, id, vcpu, vcpu_reset(vcpu));
}

/* Which of a VM's sets of vCPUs: cpuSet in library.go. */
enum bridge_set { BRIDGE_ACTIVE, BRIDGE_SUSPENDED, BRIDGE_DEBUG };

/* The numbers of the vCPUs in the set, at most max of them; *n is how many. */
static inline int
bridge_cpus(struct vmctx *ctx, int set, int *ids, int max, int *n)
{
	cpuset_t cpus;
	int error, i;

	CPU_ZERO(&cpus);
	*n = 0;
	switch (set) {
	case BRIDGE_ACTIVE:
		error = vm_active_cpus(ctx, &cpus);
		break;
	case BRIDGE_SUSPENDED:
		error = vm_suspended_cpus(ctx, &cpus);
		break;
	case BRIDGE_DEBUG:
		error = vm_debug_cpus(ctx, &cpus);
		break;
	default:
		return (EINVAL);
	}
	if (error != 0)
		return (bridge_errno(error));
	for (i = 0; i < CPU_SETSIZE; i++) {
		if (!CPU_ISSET(i, &cpus))
			continue;
		if (*n == max)
			return (ERANGE);
		ids[(*n)++] = i;
	}
	return (0);
}

/* The buffer that vm_get_stats answers in belongs to the calling thread. */
static inline int
bridge_stats(struct vmctx *ctx, int id, uint64_t *values, int max, int *n,
    int64_t *sec, int64_t *usec)
{
	struct timeval tv = { 0, 0 };
	struct vcpu *vcpu;
	uint64_t *stats;
	int error = 0;

	*n = 0;
	vcpu = vm_vcpu_open(ctx, id);
	stats = vm_get_stats(vcpu, &tv, n);
	if (stats == NULL)
		error = bridge_errno(-1);
	else if (*n > max)
		error = ERANGE;
	else
		memcpy(values, stats, (size_t)*n * sizeof(*values));
	vm_vcpu_close(vcpu);
	*sec = tv.tv_sec;
	*usec = tv.tv_usec;
	return (error);
}

/*
 * The answer is in a static buffer: calls must not overlap. An empty name says
 * that there is no such statistic.
 */
static inline void
bridge_stat_name(struct vmctx *ctx, int index, char *name, size_t size)
{
	const char *desc = vm_get_stat_desc(ctx, index);

	name[0] = '\0';
	if (desc != NULL) {
		strncpy(name, desc, size - 1);
		name[size - 1] = '\0';
	}
}

static inline int
bridge_set_topology(struct vmctx *ctx, uint16_t sockets, uint16_t cores,
    uint16_t threads, uint16_t maxcpus)
{
	return (bridge_errno(vm_set_topology(ctx, sockets, cores, threads,
	    maxcpus)));
}

static inline int
bridge_topology(struct vmctx *ctx, uint16_t *sockets, uint16_t *cores,
    uint16_t *threads, uint16_t *maxcpus)
{
	return (bridge_errno(vm_get_topology(ctx, sockets, cores, threads,
	    maxcpus)));
}

static inline int
bridge_set_clock(struct vmctx *ctx, int64_t sec)
{
	return (bridge_errno(vm_rtc_settime(ctx, (time_t)sec)));
}

static inline int
bridge_restore_time(struct vmctx *ctx)
{
	return (bridge_errno(vm_restore_time(ctx)));
}

static inline int
bridge_clock(struct vmctx *ctx, int64_t *sec)
{
	time_t t = 0;
	int error = bridge_errno(vm_rtc_gettime(ctx, &t));

	*sec = t;
	return (error);
}

static inline int
bridge_max_vcpus(unsigned int *n)
{
	size_t len = sizeof(*n);

	*n = 0;
	return (bridge_errno(sysctlbyname("hw.vmm.maxcpu", n, &len, NULL, 0)));
}

#endif
