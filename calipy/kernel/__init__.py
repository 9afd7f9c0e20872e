"""The edges to the kernel that all components share: netlink, namespaces, sysctls, programs.

Nothing here decides anything. Each function does one thing to the kernel or reads one thing back, blocks for as long as
the kernel takes (microseconds, unless said otherwise) and raises ``KernelError`` with the errno.
"""
