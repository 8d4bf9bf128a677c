"""The list: every kind's cases, and what the server did on 88f05dd."""

import answers
import deadlines
import large_requests
import memory_of_runs
from on_88f05dd import ON_88F05DD  # noqa: F401: for the list.

KINDS = [memory_of_runs, large_requests, answers, deadlines]
ALL = [case for kind in KINDS for case in kind.CASES]
