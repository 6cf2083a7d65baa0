#ifndef STANDIN_SYS_CPUSET_H
#define STANDIN_SYS_CPUSET_H

#include <string.h>

#define CPU_SETSIZE 1024

typedef struct {
	unsigned char bits[CPU_SETSIZE / 8];
} cpuset_t;

#define CPU_ZERO(p) memset((p), 0, sizeof(cpuset_t))
#define CPU_SET(n, p) ((p)->bits[(n) / 8] |= 1u << ((n) % 8))
#define CPU_ISSET(n, p) (((p)->bits[(n) / 8] >> ((n) % 8)) & 1u)

#endif
