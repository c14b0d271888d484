"""Exact search: for every query the best keys, in one defined order."""

from xmatch.search.searcher import Searcher, build_searcher

__all__ = ["Searcher", "build_searcher"]
