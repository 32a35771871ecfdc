"""Which nodes of a session run on the CPU although another provider was asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from livemoments.ort import CPU_PROVIDER
from livemoments.types import Stage

RECORD = "session.record_ep_graph_assignment_info"
"""Session option (``1``: on), without which a session does not tell."""
_MOST_NAMES = 4


def placement_remark(session: Any, stage: Stage, provider: str) -> str | None:
    """What to tell of a session's nodes on the CPU, ``None`` if there are none.

    Args:
        session: an ``onnxruntime.InferenceSession`` that was opened with :data:`RECORD`.
        stage: of the graph.
        provider: that was asked for, as the user calls it.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):  # onnxruntime before 1.24
        return f"stage '{stage}': this onnxruntime does not tell which nodes run on the CPU"
    parts = session.get_provider_graph_assignment_info()
    nodes = sum(len(part.get_nodes()) for part in parts)
    on_cpu = Counter(node.op_type for part in parts if part.ep_name == CPU_PROVIDER for node in part.get_nodes())
    if not on_cpu:
        return None
    named = [f"{count} {kind}" for kind, count in on_cpu.most_common(_MOST_NAMES)]
    more = f", {len(on_cpu) - _MOST_NAMES} other operators" if len(on_cpu) > _MOST_NAMES else ""
    count = f"{on_cpu.total()} of {nodes} nodes"
    return f"stage '{stage}': {count} run on the CPU, not on {provider}: {', '.join(named)}{more}"
