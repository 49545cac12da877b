/* Libraries with the names of CUDA's driver and runtime, on host memory: what ctypes is told of their arguments
   is tried on compiled functions. WORKS 0: every call of the runtime fails as with a driver that is too old. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#ifndef WORKS
#define WORKS 1
#endif

long live = 0, launched = 0;
static int capturing = 0;

int cuInit(unsigned flags) { return flags ? 1 : DRIVER; }
int cuDeviceGetCount(int *n) { *n = GPUS; return 0; }
int cuDeviceGet(int *gpu, int number) { *gpu = 7 + number; return 0; }
int cuDeviceGetName(char *name, int size, int gpu) { strncpy(name, gpu == 7 ? "Orin" : "?", size); return 0; }
int cuDeviceGetAttribute(int *value, int which, int gpu) {
    *value = which == 75 ? 8 : which == 76 ? 7 : which == 16 ? 16 : -1;
    return gpu != 7;
}
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuGetErrorString(int code, const char **text) { *text = code == 100 ? "no CUDA-capable device" : 0; return 0; }

const char *cudaGetErrorString(int code) {
    return code == 35 ? "CUDA driver version is insufficient" : code == 2 ? "out of memory" : "other";
}
int cudaRuntimeGetVersion(int *version) { *version = 11040; return 0; }
int cudaDeviceGetAttribute(int *value, int which, int gpu) { *value = which == 75 ? 8 : 7; return gpu; }
int cudaMemGetInfo(size_t *available, size_t *total) { *available = 5UL << 30; *total = 6UL << 30; return 0; }

/* Blocks far above 4 GiB, as a GPU's addresses are, begin with their size. */
static int make(void **made, size_t size) {
    if (size > (1UL << 40)) return 2;
    size_t *block = malloc(size + 16);
    block[0] = size;
    *made = (char *)block + 16;
    live++;
    return 0;
}
static int end(void *made) { if (made) { free((char *)made - 16); live--; } return WORKS ? 0 : 35; }
int cudaMalloc(void **made, size_t size) { return make(made, size); }
int cudaMallocHost(void **made, size_t size) { return make(made, size); }
int cudaFree(void *made) { return end(made); }
int cudaFreeHost(void *made) { return end(made); }
int cudaStreamCreate(void **made) { return make(made, 1); }
int cudaStreamDestroy(void *made) { return end(made); }
int cudaStreamSynchronize(void *stream) { return stream == 0; }
int cudaEventCreate(void **made) { return make(made, 8); }
int cudaEventDestroy(void *made) { return end(made); }
int cudaEventRecord(void *event, void *stream) { static int now = 0; *(int *)event = ++now; return stream == 0; }
int cudaEventSynchronize(void *event) { return event == 0; }
int cudaEventElapsedTime(float *ms, void *from, void *to) { *ms = 1.5f * (*(int *)to - *(int *)from); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    if (kind != 1 && kind != 2) return 21;
    if (!capturing) memcpy(to, from, size);
    return stream == 0;
}
int cudaStreamBeginCapture(void *stream, int mode) { capturing = 1; return mode != 2 || stream == 0; }
int cudaStreamEndCapture(void *stream, void **graph) { capturing = 0; return stream ? make(graph, 1) : 1; }
#ifndef NO_GRAPHS
int cudaGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    return graph && !flags ? make(made, 1) : 1;
}
#endif
int cudaGraphDestroy(void *graph) { return end(graph); }
int cudaGraphExecDestroy(void *graph) { return end(graph); }
int cudaGraphLaunch(void *graph, void *stream) { launched++; return graph == 0 || stream == 0; }
