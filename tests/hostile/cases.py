"""The list: every kind's cases, and what the server did on 88f05dd."""

import answers
import baking
import deadlines
import large_requests
import management
import memory_of_runs
import small
import trust
from on_88f05dd import ON_88F05DD  # noqa: F401: for the list.

KINDS = [memory_of_runs, large_requests, answers, deadlines, baking, trust, management, small]
ALL = [case for kind in KINDS for case in kind.CASES]
