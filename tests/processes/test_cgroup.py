"""The OOM killer's counter: found in either version of cgroups, and true at the moment of the death."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.clock import now
from supervisor.linux import cgroup
from supervisor.linux.cgroup import EXPENDABLE, UNCLAIMED_FOR, OomKills, cpu_quota, find_counter, make_expendable
from tests.memory_cgroup import memory_cgroup

MEBIBYTE = 1 << 20
V1_COUNTER = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2_COUNTER = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 0\n"


class Machine:
    """A /proc/self and the mounts it tells of, in files."""

    def __init__(self, directory: Path, membership: str, mountinfo: str) -> None:
        self.proc = directory / "proc"
        self.directory = directory
        self.proc.mkdir()
        (self.proc / "cgroup").write_text(membership)
        (self.proc / "mountinfo").write_text(mountinfo.replace("/sys/fs/cgroup", str(directory)))

    def has(self, path: str, text: str) -> Path:
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file


V2_MOUNT = "30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = """\
35 31 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
36 31 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_version_2_as_systemd_mounts_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/system.slice/workq.service\n", V2_MOUNT)
    counter = machine.has("system.slice/workq.service/memory.events", V2_COUNTER.format(0))
    assert find_counter(machine.proc) == counter


def test_version_1_beside_a_version_2_that_has_no_memory_controller(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "8:pids:/\n4:memory:/some/where\n3:cpuset:/\n0::/\n", V1_MOUNTS)
    counter = machine.has("memory/some/where/memory.oom_control", V1_COUNTER.format(0))
    (tmp_path / "unified").mkdir()
    assert find_counter(machine.proc) == counter


def test_a_container_that_sees_only_its_own_part_of_the_tree(tmp_path: Path) -> None:
    mount = "36 31 0:31 /docker/abc /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory\n"
    machine = Machine(tmp_path, "4:memory:/docker/abc\n", mount)
    counter = machine.has("memory/memory.oom_control", V1_COUNTER.format(0))
    assert find_counter(machine.proc) == counter


@pytest.mark.parametrize(
    ("membership", "mounts", "text"),
    [
        ("0::/\n", V2_MOUNT, None),  # the root of version 2 counts nothing
        ("4:memory:/a:b\n", V1_MOUNTS, "oom_kill_disable 0\nunder_oom 0\n"),  # before Linux 4.13
        ("8:pids:/\n", V1_MOUNTS, None),
        ("", "", None),
    ],
)
def test_where_nothing_counts_nothing_is_found(tmp_path: Path, membership: str, mounts: str, text: str | None) -> None:
    machine = Machine(tmp_path, membership, mounts)
    if text is not None:
        machine.has("memory/a:b/memory.oom_control", text)
    assert find_counter(machine.proc) is None
    assert not OomKills(None).claim(now())


def test_each_kill_is_the_cause_of_one_death(tmp_path: Path) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text(V2_COUNTER.format(7))
    kills = OomKills(counter)
    assert not kills.claim(0.0)
    counter.write_text(V2_COUNTER.format(9))
    kills.look(1.0)  # between the kills and the deaths
    assert [kills.claim(1.1), kills.claim(1.2), kills.claim(1.3)] == [True, True, False]


def test_a_kill_that_nobody_claimed_is_not_the_cause_of_a_later_death(tmp_path: Path) -> None:
    counter = tmp_path / "memory.oom_control"
    counter.write_text(V1_COUNTER.format(0))
    kills = OomKills(counter)
    counter.write_text(V1_COUNTER.format(1))
    kills.look(1.0)
    assert not kills.claim(1.1 + UNCLAIMED_FOR)


def test_a_counter_that_is_gone_counts_nothing(tmp_path: Path) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text(V2_COUNTER.format(7))
    kills = OomKills(counter)
    counter.unlink()
    assert not kills.claim(0.0)


def test_the_kernel_has_counted_a_kill_before_anybody_can_see_the_death() -> None:
    program = "import sys; sys.stdin.readline(); eaten = [b'x' * 2**20 for _ in range(256)]"
    with memory_cgroup() as group:
        group.limit(64 * MEBIBYTE)
        kills = OomKills(group.counter)
        for _ in range(20):
            eater = subprocess.Popen([sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, text=True)
            pidfd = os.pidfd_open(eater.pid)
            try:
                group.take(eater.pid)
                assert eater.stdin is not None
                eater.stdin.write("\n")
                eater.stdin.flush()
                assert select.select([pidfd], [], [], 30)[0]
                assert kills.claim(now())
                assert not kills.claim(now())
                assert eater.wait() == -9
            finally:
                eater.kill()
                eater.communicate()
                os.close(pidfd)


def test_a_process_is_made_expendable_and_the_caller_is_not() -> None:
    own = Path("/proc/self/oom_score_adj").read_text()
    child = subprocess.Popen(["sleep", "600"])
    try:
        make_expendable(child.pid)
        assert int(Path(f"/proc/{child.pid}/oom_score_adj").read_text()) == min(1000, int(own) + EXPENDABLE)
        make_expendable(child.pid)  # as if it was forked by one that is: no more expendable than that one
        assert int(Path(f"/proc/{child.pid}/oom_score_adj").read_text()) == min(1000, int(own) + EXPENDABLE)
    finally:
        child.kill()
        child.wait()
    make_expendable(child.pid)  # is gone: no reason to fail
    assert Path("/proc/self/oom_score_adj").read_text() == own


def test_this_kernel_is_read_right() -> None:
    counter = cgroup.find_counter()
    if counter is None:
        pytest.skip("this process is in no memory cgroup with an OOM counter")
    with memory_cgroup() as group, group.inside():
        assert cgroup.find_counter() == group.counter
    assert cgroup.find_counter() == counter


# ------------------------------------------------------------------------------------------------ 83: CPU quotas

V1_CPU = "37 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, None),
        ({"a.slice": "max 100000\n"}, None),
        ({"a.slice/b.service": "150000 100000\n"}, 1.5),
        ({"a.slice/b.service": "max 100000\n", "a.slice": "50000 100000\n"}, 0.5),
        ({"a.slice/b.service": "400000 100000\n", "a.slice": "20000 10000\n"}, 2.0),
        ({"a.slice/b.service": "100000 100000\n", "a.slice": "800000 100000\n"}, 1.0),
        ({"a.slice/b.service": "nonsense\n"}, None),
        ({"a.slice/b.service": "100000 0\n"}, None),
        ({"a.slice/sibling.service": "100000 100000\n"}, None),
    ],
)
def test_f83_version_2_the_smallest_quota_on_the_way_up_counts(
    tmp_path: Path, quotas: dict[str, str], expected: float | None
) -> None:
    machine = Machine(tmp_path, "0::/a.slice/b.service\n", V2_MOUNT)
    for path, text in quotas.items():
        machine.has(f"{path}/cpu.max", text)
    assert cpu_quota(machine.proc) == expected


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({"a/b": ("-1", "100000")}, None),
        ({"a/b": ("250000", "100000")}, 2.5),
        ({"a/b": ("-1", "100000"), "a": ("100000", "50000")}, 2.0),
        ({"a/b": ("50000", "100000"), "a": ("100000", "50000"), "": ("-1", "100000")}, 0.5),
    ],
)
def test_f83_version_1_the_smallest_quota_on_the_way_up_counts(
    tmp_path: Path, quotas: dict[str, tuple[str, str]], expected: float | None
) -> None:
    machine = Machine(tmp_path, "5:cpu,cpuacct:/a/b\n4:memory:/some/where\n0::/\n", V1_CPU + V1_MOUNTS)
    for path, (quota, period) in quotas.items():
        machine.has(f"cpu,cpuacct/{path}/cpu.cfs_quota_us", quota)
        machine.has(f"cpu,cpuacct/{path}/cpu.cfs_period_us", period)
    assert cpu_quota(machine.proc) == expected


def test_f83_a_container_has_its_quota_at_the_root_of_what_it_sees(tmp_path: Path) -> None:
    # A cgroup namespace, as docker and podman make them with version 2.
    machine = Machine(tmp_path, "0::/\n", V2_MOUNT)
    machine.has("cpu.max", "300000 100000\n")
    assert cpu_quota(machine.proc) == 3.0


def test_f83_without_proc_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "nothing") is None
