import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rnnlm.batch.lease import LeaseHeldError, current_holder, lease
from rnnlm.storage import Store


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with lease(store) as holder:
        assert holder.process == os.getpid()
        with pytest.raises(LeaseHeldError, match=f"held by process {os.getpid()}"), lease(store):
            pass
    assert current_holder(store) is None
    assert store.files() == []


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with lease(store, seconds=0.3) as holder:
        time.sleep(0.6)
        renewed = current_holder(store)
        assert renewed is not None
        assert renewed.token == holder.token
        assert renewed.expires > holder.expires


def test_a_lease_that_ran_out_is_taken_over(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json("lease.json", {"token": "t", "host": "elsewhere", "process": 1, "expires": time.time() - 1})
    with lease(store):
        pass


def test_a_dead_process_of_this_host_holds_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    code = (
        "import os, sys\nfrom rnnlm.batch.lease import lease\nfrom rnnlm.storage import Store\n"
        "with lease(Store(sys.argv[1])):\n    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert json.loads((tmp_path / "lease.json").read_text())["expires"] > time.time()
    assert current_holder(store) is None
    with lease(store):
        pass


def test_a_broken_lease_file_holds_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("lease.json", b"{broken")
    with lease(store):
        pass


def test_a_lease_of_another_host_is_respected(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json("lease.json", {"token": "t", "host": "elsewhere", "process": 7, "expires": time.time() + 50})
    with pytest.raises(LeaseHeldError, match="process 7 on elsewhere"), lease(store):
        pass
