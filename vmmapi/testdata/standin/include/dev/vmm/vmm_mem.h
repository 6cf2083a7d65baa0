#ifndef STANDIN_VMM_MEM_H
#define STANDIN_VMM_MEM_H

enum { VM_SYSMEM = 0 };

#endif
