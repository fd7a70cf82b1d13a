/* A libnvidia-ml.so.1 that answers from a text file, so that the real nvidia-ml-py can be driven without a GPU.
 *
 * FAKE_NVML names the file; nvmlInit reads it anew. Each line is "key=value": "init", "count", "driver", then facts of
 * devices such as "gpu0.name" and of MIG instances such as "gpu0.mig1.uuid". A missing fact is NVML_ERROR_NOT_SUPPORTED,
 * "!15" is NVML error 15, and "gpu1=!15" is the answer to every question about gpu1. nvmlInit and nvmlShutdown leave a
 * line each in FAKE_NVML.calls.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUCCESS 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define NOT_AVAILABLE 0xFFFFFFFFFFFFFFFFULL

typedef unsigned long long u64;
typedef const char *device; /* a handle is the device's own name, such as "gpu0.mig1" */
typedef struct { unsigned pid; u64 used; unsigned instance, compute; } process;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_info;

static char text[1 << 16], handles[256][32];
static int handle_count;

static void record(const char *call) {
    char path[4096];
    snprintf(path, sizeof path, "%s.calls", getenv("FAKE_NVML"));
    FILE *file = fopen(path, "a");
    if (file) { fprintf(file, "%s\n", call); fclose(file); }
}

static int find(const char *key, char *value, size_t size) {
    size_t length = strlen(key);
    for (const char *line = text; *line; line = strchr(line, '\n') + 1) {
        if (strncmp(line, key, length) == 0 && line[length] == '=') {
            const char *start = line + length + 1;
            snprintf(value, size, "%.*s", (int)strcspn(start, "\n"), start);
            return value[0] == '!' ? atoi(value + 1) : SUCCESS;
        }
    }
    return NOT_SUPPORTED;
}

static int fact(device handle, const char *name, char *value, size_t size) {
    char key[128];
    int whole = find(handle, value, size);
    if (whole != SUCCESS && whole != NOT_SUPPORTED) return whole;
    snprintf(key, sizeof key, "%s.%s", handle, name);
    return find(key, value, size);
}

static int string(device handle, const char *name, char *value, unsigned size) {
    char found[512];
    int code = fact(handle, name, found, sizeof found);
    if (code == SUCCESS) snprintf(value, size, "%s", found);
    return code;
}

/* Up to `count` numbers, separated by anything that is not a digit. */
static int numbers(device handle, const char *name, u64 *values, int count) {
    char found[512], *rest = found;
    int code = fact(handle, name, found, sizeof found);
    for (int i = 0; code == SUCCESS && i < count; i++) {
        values[i] = strtoull(rest, &rest, 10);
        if (*rest) rest++;
    }
    return code;
}

static int number(device handle, const char *name, unsigned *value) {
    u64 found = 0;
    int code = numbers(handle, name, &found, 1);
    if (code == SUCCESS) *value = (unsigned)found;
    return code;
}

static int open_handle(const char *name, device *handle) {
    char ignored[64];
    int code = find(name, ignored, sizeof ignored);
    if (code != SUCCESS && code != NOT_SUPPORTED && code != 15) return code;
    char *slot = handles[handle_count++ % 256];
    snprintf(slot, sizeof handles[0], "%s", name);
    *handle = slot;
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    char value[64];
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    (void)flags;
    text[fread(text, 1, sizeof text - 2, file)] = 0;
    fclose(file);
    strcat(text, "\n");
    handle_count = 0;
    int code = find("init", value, sizeof value);
    if (code == SUCCESS || code == NOT_SUPPORTED) { record("init"); return SUCCESS; }
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { record("shutdown"); return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "some error"; }

int nvmlSystemGetDriverVersion(char *value, unsigned size) { return find("driver", value, size); }

int nvmlDeviceGetCount_v2(unsigned *count) {
    char value[64] = "0";
    int code = find("count", value, sizeof value);
    *count = (unsigned)atoi(value);
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *handle) {
    char name[32], value[64];
    snprintf(name, sizeof name, "gpu%u.handle", index);
    int code = find(name, value, sizeof value);
    if (code != SUCCESS && code != NOT_SUPPORTED) return code;
    *strchr(name, '.') = 0;
    return open_handle(name, handle);
}

int nvmlDeviceGetMigDeviceHandleByIndex(device parent, unsigned index, device *handle) {
    char name[32], uuid[128];
    snprintf(name, sizeof name, "%s.mig%u", parent, index);
    return fact(name, "uuid", uuid, sizeof uuid) == SUCCESS ? open_handle(name, handle) : NOT_FOUND;
}

int nvmlDeviceGetName(device d, char *value, unsigned size) { return string(d, "name", value, size); }
int nvmlDeviceGetUUID(device d, char *value, unsigned size) { return string(d, "uuid", value, size); }

int nvmlDeviceGetPciInfo_v3(device d, pci_info *info) {
    memset(info, 0, sizeof *info);
    return string(d, "bus", info->bus_id, sizeof info->bus_id);
}

/* "memory" is total,free,used as version 1 tells them; "memory2" is total,reserved,free,used. */
int nvmlDeviceGetMemoryInfo(device d, u64 *info) { return numbers(d, "memory", info, 3); }
int nvmlDeviceGetMemoryInfo_v2(device d, u64 *info) { return numbers(d, "memory2", info + 1, 4); }

static int pair(device d, const char *name, unsigned *first, unsigned *second) {
    u64 found[2] = {0, 0};
    int code = numbers(d, name, found, 2);
    if (code == SUCCESS) { *first = (unsigned)found[0]; *second = (unsigned)found[1]; }
    return code;
}

int nvmlDeviceGetCudaComputeCapability(device d, unsigned *major, unsigned *minor) {
    return pair(d, "capability", major, minor);
}
int nvmlDeviceGetEccMode(device d, unsigned *now, unsigned *pending) { return pair(d, "ecc", now, pending); }
int nvmlDeviceGetMigMode(device d, unsigned *now, unsigned *pending) { return pair(d, "mig", now, pending); }

#define NUMBER(function, name) \
    int function(device d, unsigned *value) { return number(d, name, value); }
NUMBER(nvmlDeviceGetMaxMigDeviceCount, "mig_max")
NUMBER(nvmlDeviceGetGpuInstanceId, "gpu_instance")
NUMBER(nvmlDeviceGetComputeInstanceId, "compute_instance")
NUMBER(nvmlDeviceGetNumGpuCores, "cores")
NUMBER(nvmlDeviceGetMemoryBusWidth, "bus_width")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power")
NUMBER(nvmlDeviceGetPowerManagementLimit, "power_limit")
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_max_generation")
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "pcie_max_width")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, "retired_pending")
NUMBER(nvmlDeviceGetComputeMode, "compute_mode")

static const char *CLOCKS[] = {"clock_graphics", "clock_sm", "clock_memory", "clock_video"};
static const char *MAX_CLOCKS[] = {"max_clock_graphics", "max_clock_sm", "max_clock_memory", "max_clock_video"};
int nvmlDeviceGetClockInfo(device d, unsigned kind, unsigned *value) { return number(d, CLOCKS[kind & 3], value); }
int nvmlDeviceGetMaxClockInfo(device d, unsigned kind, unsigned *value) {
    return number(d, MAX_CLOCKS[kind & 3], value);
}

int nvmlDeviceGetCurrentClocksEventReasons(device d, u64 *bits) { return numbers(d, "throttle", bits, 1); }
int nvmlDeviceGetCurrentClocksThrottleReasons(device d, u64 *bits) { return numbers(d, "throttle_old", bits, 1); }

int nvmlDeviceGetAttributes_v2(device d, unsigned *attributes) { return number(d, "multiprocessors", attributes); }

int nvmlDeviceGetRetiredPages(device d, unsigned cause, unsigned *count, u64 *pages) {
    unsigned room = *count;
    int code = number(d, cause ? "retired_double" : "retired_single", count);
    if (code != SUCCESS) return code;
    if (pages == NULL) return *count ? INSUFFICIENT_SIZE : SUCCESS;
    if (room < *count) return INSUFFICIENT_SIZE;
    memset(pages, 0, *count * sizeof *pages);
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(device d, unsigned *single, unsigned *multiple, unsigned *pending, unsigned *failed) {
    u64 found[4] = {0, 0, 0, 0};
    int code = numbers(d, "remapped", found, 4);
    if (code != SUCCESS) return code;
    *single = (unsigned)found[0], *multiple = (unsigned)found[1];
    *pending = (unsigned)found[2], *failed = (unsigned)found[3];
    return SUCCESS;
}

/* "1234:1073741824 99:na": process ids and bytes. */
static int processes(device d, const char *name, unsigned *count, process *found) {
    char list[512], *save = NULL;
    unsigned room = *count, seen = 0;
    int code = fact(d, name, list, sizeof list);
    if (code != SUCCESS) return code;
    for (char *item = strtok_r(list, " ", &save); item; item = strtok_r(NULL, " ", &save), seen++) {
        char *bytes = strchr(item, ':') + 1;
        process one = {(unsigned)atoi(item), *bytes == 'n' ? NOT_AVAILABLE : strtoull(bytes, NULL, 10), 0, 0};
        if (seen < room && found) found[seen] = one;
    }
    *count = seen;
    return seen > room ? INSUFFICIENT_SIZE : SUCCESS;
}
#define PROCESSES(function, name) \
    int function(device d, unsigned *count, process *found) { return processes(d, name, count, found); }
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "compute_old")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")

/* "link0=gpu 00000000:02:00.0" or "link0=switch 00000000:c0:00.0"; links without a line are down. */
static int nvlink(device d, unsigned link, char *kind, char *bus) {
    char name[16], value[128];
    snprintf(name, sizeof name, "link%u", link);
    int code = fact(d, name, value, sizeof value);
    if (code == SUCCESS) sscanf(value, "%15s %31s", kind, bus);
    return code;
}

int nvmlDeviceGetNvLinkState(device d, unsigned link, unsigned *active) {
    char kind[16], bus[32];
    unsigned links = 0;
    int code = number(d, "links", &links);
    if (code != SUCCESS) return code;
    if (link >= links) return INVALID_ARGUMENT;
    *active = nvlink(d, link, kind, bus) == SUCCESS;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(device d, unsigned link, unsigned *type) {
    char kind[16] = "", bus[32];
    int code = nvlink(d, link, kind, bus);
    *type = strcmp(kind, "switch") ? 0 : 2;
    return code;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(device d, unsigned link, pci_info *info) {
    char kind[16];
    memset(info, 0, sizeof *info);
    return nvlink(d, link, kind, info->bus_id);
}

int nvmlDeviceGetNvLinkVersion(device d, unsigned link, unsigned *version) {
    (void)link;
    return number(d, "link_version", version);
}

/* "p2p=gpu1 gpu3": the devices that NVLink reaches. */
int nvmlDeviceGetP2PStatus(device d, device other, unsigned what, unsigned *status) {
    char reached[256];
    int code = fact(d, "p2p", reached, sizeof reached);
    *status = what == 2 && code == SUCCESS && strstr(reached, other) ? 0 : 5;
    return code;
}
