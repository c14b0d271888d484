"""Exact search: for every query the best keys, in one defined order."""

from xmatch.search.exact import SearchCounts, SearchResult, merge_results
from xmatch.search.searcher import Searcher, build_searcher

__all__ = ["SearchCounts", "SearchResult", "Searcher", "build_searcher", "merge_results"]
