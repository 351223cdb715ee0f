"""Send small results without asking first whether the server wants them.

FLARE 2.9.0 sends a message before each result, to find out whether the connection is good: replaces
``_try_send_result_once`` of a site's ``ClientRunner``. Where a small result does not get through, FLARE's way follows.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.fuel.utils.msg_root_utils import delete_msg_root
from nvflare.private.fed.client.client_runner import _TASK_CHECK_RESULT_OK, ClientRunner


def send_promptly(runner: ClientRunner, is_small: Callable[[Shareable], bool]) -> None:
    """Send small results at once.

    Args:
        runner: of the site's job.
        is_small: whether a result is worth no message of its own.
    """
    send = runner._try_send_result_once

    def send_small_at_once(result: Shareable, task_id: str, fl_ctx: FLContext) -> int:
        if is_small(result):
            root = str(uuid.uuid4())
            result.set_header(ReservedHeaderKey.MSG_ROOT_ID, root)
            if runner.engine.send_task_result(result, fl_ctx, timeout=runner.task_check_timeout):
                delete_msg_root(root)
                return int(_TASK_CHECK_RESULT_OK)
        return int(send(result, task_id, fl_ctx))

    runner._try_send_result_once = send_small_at_once
