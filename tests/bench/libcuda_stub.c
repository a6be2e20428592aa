/* A CUDA driver whose clock the work moves, for tests on machines without a GPU.
   Arguments are those of the CUDA Driver API. Time is in microseconds; `stub_work` is what a kernel would be. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static double now;
static double events[4096];
static uintptr_t used;
static int capturing, captured, replays, live, fail_capture;
static size_t flushed;

typedef void *handle;

void stub_work(double microseconds) { if (capturing) captured += (int)microseconds; else now += microseconds; }
int stub_live(void) { return live; }
int stub_replays(void) { return replays; }
size_t stub_flushed(void) { return flushed; }
void stub_fail_capture(int yes) { fail_capture = yes; }

int cuInit(unsigned flags) { return flags ? 1 : 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stub GPU", length); return device != 7; }
int cuDeviceGetPCIBusId(char *name, int length, int device) { strncpy(name, "0000:3B:00.0", length); return device != 7; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 1 << 20; return attribute != 38 || device != 7; }
int cuDevicePrimaryCtxRetain(handle *context, int device) { *context = (handle)0x123456789ab; return device != 7; }
int cuCtxSetCurrent(handle context) { return context != (handle)0x123456789ab; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 1ul << 33; *total = 1ul << 34; return 0; }
int cuMemAlloc_v2(uint64_t *pointer, size_t size) { *pointer = (uint64_t)(uintptr_t)malloc(size); live++; return size ? 0 : 1; }
int cuMemFree_v2(uint64_t pointer) { live--; free((void *)(uintptr_t)pointer); return 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) { memcpy((void *)(uintptr_t)to, from, size); return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) { memcpy(to, (const void *)(uintptr_t)from, size); return 0; }
int cuMemsetD8Async(uint64_t pointer, unsigned char value, size_t count, handle stream) {
  memset((void *)(uintptr_t)pointer, value, count);
  flushed = count; now += 100; return value || stream != (handle)0x5555aaaa5555;
}
int cuStreamCreate(handle *stream, unsigned flags) { *stream = (handle)0x5555aaaa5555; live++; return flags != 1; }
int cuStreamDestroy_v2(handle stream) { live--; return stream != (handle)0x5555aaaa5555; }
int cuStreamSynchronize(handle stream) { return stream != (handle)0x5555aaaa5555; }
int cuStreamBeginCapture_v2(handle stream, int mode) { capturing = 1; captured = 0; return stream != (handle)0x5555aaaa5555 || mode != 2; }
int cuStreamEndCapture(handle stream, handle *graph) { capturing = 0; *graph = (handle)0x9999; return fail_capture ? 901 : stream != (handle)0x5555aaaa5555; }
int cuGraphInstantiateWithFlags(handle *exec, handle graph, unsigned long long flags) { *exec = (handle)0x8888; live++; return graph != (handle)0x9999 || flags; }
int cuGraphLaunch(handle exec, handle stream) { replays++; now += captured; return exec != (handle)0x8888 || stream != (handle)0x5555aaaa5555; }
int cuGraphExecDestroy(handle exec) { live--; return exec != (handle)0x8888; }
int cuGraphDestroy(handle graph) { return graph != (handle)0x9999; }
int cuEventCreate(handle *event, unsigned flags) { *event = (handle)(0x700000000000ull + used++ % 4096); live++; return flags; }
int cuEventDestroy_v2(handle event) { live--; return !event; }
int cuEventRecord(handle event, handle stream) { events[(uintptr_t)event & 4095] = now; return stream != (handle)0x5555aaaa5555; }
int cuEventElapsedTime(float *milliseconds, handle start, handle end) {
  *milliseconds = (float)((events[(uintptr_t)end & 4095] - events[(uintptr_t)start & 4095]) / 1000); return 0;
}
int cuGetErrorString(int status, const char **text) { *text = status == 901 ? "operation failed due to a previous error during capture" : "invalid argument"; return 0; }
