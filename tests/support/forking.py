"""Processes that start at once: forked from a server that has the libraries imported and has run nothing of a test."""

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["splitplane.model", "splitplane.runtime.stage.server"])
