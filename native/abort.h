/* Stopping a long llama_decode: a flag, and Python's signals. Knows nothing of models. */
#ifndef MEMDEC_ABORT_H
#define MEMDEC_ABORT_H

#include <stdbool.h>

/* llama.cpp asks this before each graph node, in the thread that called llama_decode, which ctypes took the GIL from.
 * `data`: a caller-owned int32; not 0 means stop. 2 is stored when a signal handler of Python's raised (Ctrl-C). */
bool md_abort_callback(void *data);

/* Once, with the GIL. -1 with a Python error set. */
int md_abort_setup(void);

#endif
