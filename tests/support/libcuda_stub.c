/* A CUDA driver on the host's memory whose clock the work moves, for tests on machines without a GPU.
   Arguments are those of the CUDA Driver API, and wrong ones are answered with an error. Copies between host and device
   happen when the stream is waited for, no sooner. Time is in microseconds; `stub_work` is what a kernel would be. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void *handle;
static const handle CONTEXT = (handle)0x123456789ab, STREAM = (handle)0x5555aaaa5555;
static const handle GRAPH = (handle)0x9999, EXECUTABLE = (handle)0x8888;
enum { DEVICE = 7, INVALID = 1, NO_MEMORY = 2, BROKEN_CAPTURE = 901, EVENTS = 4096, COPIES = 64 };

static double now, events[EVENTS];
static uintptr_t used;
static int capturing, captured, replays, live, contexts, fail_capture, entered, allocations, waiting;
static size_t flushed;
static struct { void *to; const void *from; size_t size; } copies[COPIES];

void stub_work(double microseconds) { if (capturing) captured += (int)microseconds; else now += microseconds; }
int stub_live(void) { return live; }
int stub_contexts(void) { return contexts; }
int stub_replays(void) { return replays; }
int stub_allocations(void) { return allocations; }
size_t stub_flushed(void) { return flushed; }
void stub_fail_capture(int yes) { fail_capture = yes; }

static int later(void *to, const void *from, size_t size, handle stream) {
  if (stream != STREAM || capturing || waiting == COPIES || !entered) return INVALID;
  copies[waiting].to = to; copies[waiting].from = from; copies[waiting++].size = size;
  return 0;
}

int cuInit(unsigned flags) { return flags ? INVALID : 0; }
int cuDeviceGet(int *device, int ordinal) { *device = DEVICE; return ordinal; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stub GPU", length); return device != DEVICE; }
int cuDeviceGetPCIBusId(char *id, int length, int device) { strncpy(id, "0000:3B:00.0", length); return device != DEVICE; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 1 << 20; return attribute != 38 || device != DEVICE; }
int cuDevicePrimaryCtxRetain(handle *context, int device) { *context = CONTEXT; contexts++; return device != DEVICE; }
int cuDevicePrimaryCtxRelease_v2(int device) { contexts--; return device != DEVICE; }
int cuCtxSetCurrent(handle context) { entered = 1; return context != CONTEXT; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 1ul << 33; *total = 1ul << 34; return 0; }
int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
  if (size > 1u << 30) return NO_MEMORY;
  *pointer = (uint64_t)(uintptr_t)malloc(size); live++; allocations++;
  return size ? 0 : INVALID;
}
int cuMemFree_v2(uint64_t pointer) { live--; free((void *)(uintptr_t)pointer); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, handle s) { return later((void *)(uintptr_t)to, from, n, s); }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, handle s) { return later(to, (const void *)(uintptr_t)from, n, s); }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, handle s) {
  return later((void *)(uintptr_t)to, (const void *)(uintptr_t)from, n, s);
}
int cuMemsetD8Async(uint64_t pointer, unsigned char value, size_t count, handle stream) {
  memset((void *)(uintptr_t)pointer, value, count);
  flushed = count; now += 100; return value || stream != STREAM;
}
int cuStreamCreate(handle *stream, unsigned flags) { *stream = STREAM; live++; return flags != 1; }
int cuStreamDestroy_v2(handle stream) { live--; return stream != STREAM; }
int cuStreamSynchronize(handle stream) {
  for (int i = 0; i < waiting; i++) memcpy(copies[i].to, copies[i].from, copies[i].size);
  waiting = 0;
  return stream != STREAM || capturing;
}
int cuStreamBeginCapture_v2(handle stream, int mode) { capturing = 1; captured = 0; return stream != STREAM || mode != 1; }
int cuStreamEndCapture(handle stream, handle *graph) {
  capturing = 0; *graph = fail_capture ? NULL : GRAPH;
  return fail_capture ? BROKEN_CAPTURE : stream != STREAM;
}
int cuGraphInstantiateWithFlags(handle *exec, handle graph, unsigned long long flags) {
  *exec = EXECUTABLE; live++; return graph != GRAPH || flags;
}
int cuGraphLaunch(handle exec, handle stream) { replays++; now += captured; return exec != EXECUTABLE || stream != STREAM; }
int cuGraphExecDestroy(handle exec) { live--; return exec != EXECUTABLE; }
int cuGraphDestroy(handle graph) { return graph != GRAPH; }
int cuEventCreate(handle *event, unsigned flags) {
  *event = (handle)(0x700000000000ull + used++ % EVENTS); live++; return flags;
}
int cuEventDestroy_v2(handle event) { live--; return !event; }
int cuEventRecord(handle event, handle stream) { events[(uintptr_t)event & (EVENTS - 1)] = now; return stream != STREAM; }
int cuEventElapsedTime(float *milliseconds, handle start, handle end) {
  *milliseconds = (float)((events[(uintptr_t)end & (EVENTS - 1)] - events[(uintptr_t)start & (EVENTS - 1)]) / 1000);
  return 0;
}
int cuGetErrorString(int status, const char **text) {
  *text = status == BROKEN_CAPTURE ? "operation failed due to a previous error during capture"
        : status == NO_MEMORY ? "out of memory" : "invalid argument";
  return 0;
}
