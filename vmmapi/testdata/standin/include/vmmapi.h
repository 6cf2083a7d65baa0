#ifndef STANDIN_VMMAPI_H
#define STANDIN_VMMAPI_H

#include <sys/cpuset.h>
#include <sys/time.h>

#include <machine/vmm.h>

#include <stddef.h>
#include <stdint.h>
#include <time.h>

struct vmctx;
struct vcpu;

enum vm_mmap_style { VM_MMAP_NONE = 400, VM_MMAP_ALL };

#define VM_MEM_F_WIRED 0x40

int vm_create(const char *);
struct vmctx *vm_open(const char *);
void vm_close(struct vmctx *);
void vm_destroy(struct vmctx *);
int vm_reinit(struct vmctx *);
int vm_suspend(struct vmctx *, enum vm_suspend_how);

int vm_get_memseg(struct vmctx *, int, size_t *, char *, size_t);
void vm_set_memflags(struct vmctx *, int);
int vm_setup_memory(struct vmctx *, size_t, enum vm_mmap_style);
void *vm_map_gpa(struct vmctx *, vm_paddr_t, size_t);
size_t vm_get_lowmem_size(struct vmctx *);
size_t vm_get_highmem_size(struct vmctx *);

struct vcpu *vm_vcpu_open(struct vmctx *, int);
void vm_vcpu_close(struct vcpu *);
int vcpu_reset(struct vcpu *);
int vm_set_register(struct vcpu *, int, uint64_t);
int vm_get_register(struct vcpu *, int, uint64_t *);
int vm_set_desc(struct vcpu *, int, uint64_t, uint32_t, uint32_t);
int vm_get_desc(struct vcpu *, int, uint64_t *, uint32_t *, uint32_t *);
int vm_set_capability(struct vcpu *, enum vm_cap_type, int);
int vm_get_capability(struct vcpu *, enum vm_cap_type, int *);

int vm_active_cpus(struct vmctx *, cpuset_t *);
int vm_suspended_cpus(struct vmctx *, cpuset_t *);
int vm_debug_cpus(struct vmctx *, cpuset_t *);
int vm_set_topology(struct vmctx *, uint16_t, uint16_t, uint16_t, uint16_t);
int vm_get_topology(struct vmctx *, uint16_t *, uint16_t *, uint16_t *,
    uint16_t *);

uint64_t *vm_get_stats(struct vcpu *, struct timeval *, int *);
const char *vm_get_stat_desc(struct vmctx *, int);
int vm_rtc_settime(struct vmctx *, time_t);
int vm_rtc_gettime(struct vmctx *, time_t *);
int vm_restore_time(struct vmctx *);

#endif
