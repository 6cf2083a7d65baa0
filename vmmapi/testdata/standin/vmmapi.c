/* See README.md. Not for use outside of tests. */
#include <sys/cpuset.h>
#include <sys/sysctl.h>
#include <sys/time.h>

#include <dev/vmm/vmm_mem.h>

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vmmapi.h>

#define NVM 64
#define NVCPU 4
#define NAMELEN 229
#define NREG STANDIN_REG_END

struct machine {
	char name[NAMELEN + 1];
	char *memory;
	size_t size;
	int wired;
	uint64_t regs[NVCPU][NREG];
	uint64_t base[NVCPU][NREG];
	uint32_t limit[NVCPU][NREG], access[NVCPU][NREG];
	int caps[NVCPU][NREG];
	uint16_t topology[3];
	time_t clock;
	int suspended;
};

struct vmctx {
	struct machine *m;
	int memflags;
};

struct vcpu {
	struct vmctx *ctx;
	int id;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct machine *machines[NVM];

static int
fail(int error)
{
	errno = error;
	return (-1);
}

static struct machine **
find(const char *name)
{
	for (int i = 0; i < NVM; i++)
		if (machines[i] != NULL && strcmp(machines[i]->name, name) == 0)
			return (&machines[i]);
	return (NULL);
}

int
vm_create(const char *name)
{
	int error = 0;

	assert(strlen(name) <= NAMELEN);
	if (strncmp(name, "errno-", 6) == 0)
		return (fail(atoi(name + 6)));
	pthread_mutex_lock(&lock);
	if (find(name) != NULL) {
		error = EEXIST;
	} else {
		int i = 0;
		while (i < NVM && machines[i] != NULL)
			i++;
		assert(i < NVM);
		machines[i] = calloc(1, sizeof(struct machine));
		strcpy(machines[i]->name, name);
	}
	pthread_mutex_unlock(&lock);
	return (error != 0 ? fail(error) : 0);
}

struct vmctx *
vm_open(const char *name)
{
	struct vmctx *ctx = NULL;
	struct machine **m;

	assert(strlen(name) <= NAMELEN);
	pthread_mutex_lock(&lock);
	m = find(name);
	if (m != NULL) {
		ctx = calloc(1, sizeof(*ctx));
		ctx->m = *m;
	}
	pthread_mutex_unlock(&lock);
	if (ctx == NULL)
		errno = ENOENT;
	return (ctx);
}

void
vm_close(struct vmctx *ctx)
{
	free(ctx);
}

void
vm_destroy(struct vmctx *ctx)
{
	pthread_mutex_lock(&lock);
	*find(ctx->m->name) = NULL;
	pthread_mutex_unlock(&lock);
	/* The machine itself leaks: others may hold it open. */
	free(ctx);
}

int
vm_reinit(struct vmctx *ctx)
{
	return (ctx->m->suspended ? 0 : fail(EBUSY));
}

int
vm_suspend(struct vmctx *ctx, enum vm_suspend_how how)
{
	if (how <= VM_SUSPEND_NONE || how > VM_SUSPEND_RESET)
		return (fail(EINVAL));
	if (ctx->m->suspended)
		return (fail(EALREADY));
	ctx->m->suspended = how;
	ctx->m->clock = how;	/* for the test to read back */
	return (0);
}

int
vm_get_memseg(struct vmctx *ctx, int id, size_t *len, char *name, size_t n)
{
	assert(id == VM_SYSMEM);
	if (n > 0)
		name[0] = '\0';
	*len = ctx->m->size;
	return (0);
}

void
vm_set_memflags(struct vmctx *ctx, int flags)
{
	ctx->memflags = flags;
}

int
vm_setup_memory(struct vmctx *ctx, size_t size, enum vm_mmap_style style)
{
	struct machine *m = ctx->m;
	int wired = (ctx->memflags & VM_MEM_F_WIRED) != 0;

	assert(style == VM_MMAP_ALL);
	if (m->memory != NULL)
		return (m->wired != wired ? fail(EEXIST) : 0);
	m->memory = calloc(1, size);
	m->size = size;
	m->wired = wired;
	return (0);
}

void *
vm_map_gpa(struct vmctx *ctx, vm_paddr_t gpa, size_t len)
{
	struct machine *m = ctx->m;

	if (gpa >= m->size || len > m->size || gpa + len > m->size)
		return (NULL);
	return (m->memory + gpa);
}

size_t
vm_get_lowmem_size(struct vmctx *ctx)
{
	return (ctx->m->size);
}

size_t
vm_get_highmem_size(struct vmctx *ctx)
{
	(void)ctx;
	return (0);
}

struct vcpu *
vm_vcpu_open(struct vmctx *ctx, int id)
{
	struct vcpu *vcpu = malloc(sizeof(*vcpu));

	assert(id >= 0 && id < NVCPU);
	vcpu->ctx = ctx;
	vcpu->id = id;
	return (vcpu);
}

void
vm_vcpu_close(struct vcpu *vcpu)
{
	free(vcpu);
	/* As any library function may. */
	errno = ECHILD;
}

int
vcpu_reset(struct vcpu *vcpu)
{
	vcpu->ctx->m->regs[vcpu->id][VM_REG_GUEST_RIP] = 0xfff0;
	return (0);
}

int
vm_set_register(struct vcpu *vcpu, int reg, uint64_t v)
{
	vcpu->ctx->m->regs[vcpu->id][reg] = v;
	return (0);
}

int
vm_get_register(struct vcpu *vcpu, int reg, uint64_t *v)
{
	*v = vcpu->ctx->m->regs[vcpu->id][reg];
	return (0);
}

int
vm_set_desc(struct vcpu *vcpu, int reg, uint64_t base, uint32_t limit,
    uint32_t access)
{
	vcpu->ctx->m->base[vcpu->id][reg] = base;
	vcpu->ctx->m->limit[vcpu->id][reg] = limit;
	vcpu->ctx->m->access[vcpu->id][reg] = access;
	return (0);
}

int
vm_get_desc(struct vcpu *vcpu, int reg, uint64_t *base, uint32_t *limit,
    uint32_t *access)
{
	*base = vcpu->ctx->m->base[vcpu->id][reg];
	*limit = vcpu->ctx->m->limit[vcpu->id][reg];
	*access = vcpu->ctx->m->access[vcpu->id][reg];
	return (0);
}

int
vm_set_capability(struct vcpu *vcpu, enum vm_cap_type cap, int v)
{
	vcpu->ctx->m->caps[vcpu->id][cap] = v;
	return (0);
}

int
vm_get_capability(struct vcpu *vcpu, enum vm_cap_type cap, int *v)
{
	if (cap == VM_CAP_ENABLE_INVPCID)
		return (fail(ENOENT));
	*v = vcpu->ctx->m->caps[vcpu->id][cap];
	return (0);
}

/* Sets that differ, and reach from end to end. */
int
vm_active_cpus(struct vmctx *ctx, cpuset_t *set)
{
	(void)ctx;
	for (int i = 0; i < NVCPU; i++)
		CPU_SET(i, set);
	return (0);
}

int
vm_suspended_cpus(struct vmctx *ctx, cpuset_t *set)
{
	(void)ctx;
	CPU_SET(CPU_SETSIZE - 1, set);
	return (0);
}

int
vm_debug_cpus(struct vmctx *ctx, cpuset_t *set)
{
	(void)ctx;
	(void)set;
	return (ERANGE);	/* some calls answer like this */
}

int
vm_set_topology(struct vmctx *ctx, uint16_t sockets, uint16_t cores,
    uint16_t threads, uint16_t maxcpus)
{
	if (maxcpus != 0)
		return (fail(EINVAL));
	ctx->m->topology[0] = sockets;
	ctx->m->topology[1] = cores;
	ctx->m->topology[2] = threads;
	return (0);
}

int
vm_get_topology(struct vmctx *ctx, uint16_t *sockets, uint16_t *cores,
    uint16_t *threads, uint16_t *maxcpus)
{
	*sockets = ctx->m->topology[0];
	*cores = ctx->m->topology[1];
	*threads = ctx->m->topology[2];
	*maxcpus = NVCPU;
	return (0);
}

#define NSTATS 5

uint64_t *
vm_get_stats(struct vcpu *vcpu, struct timeval *tv, int *n)
{
	static _Thread_local uint64_t *buf;

	buf = realloc(buf, NSTATS * sizeof(*buf));
	for (int i = 0; i < NSTATS; i++)
		buf[i] = 1000 * vcpu->id + i;
	tv->tv_sec = 1700000000;
	tv->tv_usec = 250000;
	*n = NSTATS;
	return (buf);
}

const char *
vm_get_stat_desc(struct vmctx *ctx, int index)
{
	static char desc[128];

	(void)ctx;
	if (index >= NSTATS) {
		errno = EINVAL;
		return (NULL);
	}
	memset(desc, 0, sizeof(desc));
	snprintf(desc, sizeof(desc), "statistic %d", index);
	return (desc);
}

int
vm_rtc_settime(struct vmctx *ctx, time_t t)
{
	ctx->m->clock = t;
	return (0);
}

int
vm_rtc_gettime(struct vmctx *ctx, time_t *t)
{
	*t = ctx->m->clock;
	return (0);
}

int
vm_restore_time(struct vmctx *ctx)
{
	(void)ctx;
	return (fail(ENOTTY));
}

int
sysctlbyname(const char *name, void *old, size_t *oldlen, const void *new,
    size_t newlen)
{
	unsigned int n = NVCPU;

	if (strcmp(name, "hw.vmm.maxcpu") != 0 || *oldlen != sizeof(n) ||
	    new != NULL || newlen != 0)
		return (fail(EINVAL));
	memcpy(old, &n, sizeof(n));
	return (0);
}
