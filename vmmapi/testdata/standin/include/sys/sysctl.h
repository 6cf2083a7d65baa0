#ifndef STANDIN_SYS_SYSCTL_H
#define STANDIN_SYS_SYSCTL_H

#include <stddef.h>

int sysctlbyname(const char *, void *, size_t *, const void *, size_t);

#endif
