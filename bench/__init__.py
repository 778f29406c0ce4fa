"""The measurements that the README quotes: the daemon and its peers, on the same work, in one run.

Absolute numbers belong to one machine; what holds elsewhere are the ratios within a run. Servers
are pinned to one CPU and the load client (`load.c`) to another, so that the server is measured.
"""
