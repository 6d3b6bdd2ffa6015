/* The abort callback. Python runs its signal handlers between bytecodes only, so not during a C call of seconds. */
#define PY_SSIZE_T_CLEAN
#include "abort.h"

#include <Python.h>

#include <time.h>

static unsigned long main_thread; /* only there Python runs signal handlers */

/* The exception that is set becomes the caller's: with its traceback, and no longer set. */
static PyObject *fetch_error(void) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (value != NULL && traceback != NULL) PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

bool md_abort_callback(void *data) {
    static struct timespec last; /* the main thread's alone */
    volatile md_abort *abort = data;
    struct timespec now;
    if (abort->flag != 0) return true;
    if (PyThread_get_thread_ident() != main_thread) return false;
    if (timespec_get(&now, TIME_UTC) == 0) return false;
    const double elapsed = (double)(now.tv_sec - last.tv_sec) + 1e-9 * (double)(now.tv_nsec - last.tv_nsec);
    if (elapsed >= 0.0 && elapsed < 0.05) return false; /* negative: the clock was set back */
    last = now;
    if (!Py_IsInitialized()) return false;
    const PyGILState_STATE gil = PyGILState_Ensure();
    const bool raised = PyErr_CheckSignals() < 0;
    if (raised) {
        abort->error = fetch_error();
        abort->flag = MD_ABORT_RAISED;
    }
    PyGILState_Release(gil);
    return raised || abort->flag != 0;
}

int md_abort_setup(void) {
    PyObject *threading = PyImport_ImportModule("threading");
    PyObject *thread = threading == NULL ? NULL : PyObject_CallMethod(threading, "main_thread", NULL);
    PyObject *ident = thread == NULL ? NULL : PyObject_GetAttrString(thread, "ident");
    if (ident != NULL) main_thread = PyLong_AsUnsignedLong(ident);
    Py_XDECREF(ident);
    Py_XDECREF(thread);
    Py_XDECREF(threading);
    return PyErr_Occurred() ? -1 : 0;
}
