"""Pathway reads all files as one commit, its quickest way, and keeps the changes of one query. Called as: QUERY SHAPE DIR ANSWER."""

import csv
import sys
import time
from collections import Counter

import pathway as pw

query, shape, folder, answer = sys.argv[1:]
COLUMNS = {
    "q1": {"kind": str, "region": str, "dst_region": str},
    "q2": {"event_time_ms": int, "kind": str, "app": str, "bytes": int},
    "q3": {"event_time_ms": int, "kind": str, "app": str, "cpu_ms": int, "mem_bytes": int},
    "q4": {"event_time_ms": int, "container_id": str, "kind": str, "path": str, "region": str, "dst_region": str},
    "q5": {"container_id": str, "kind": str, "cpu_ms": int, "mem_bytes": int},
}
fleet = pw.io.csv.read(
    folder, schema=pw.schema_from_types(**COLUMNS[query]), mode="static", object_pattern="part-*.csv"
)


def usage():
    return {
        "sum_cpu": pw.reducers.sum(pw.this.cpu_ms),
        "samples": pw.reducers.count(),
        "max_cpu": pw.reducers.max(pw.this.cpu_ms),
        "max_mem": pw.reducers.max(pw.this.mem_bytes),
    }


def live():
    opened = fleet.kind == "connect_open"
    links = fleet.filter(opened | (fleet.kind == "connect_close"))
    links = links.select(links.region, links.dst_region, step=pw.if_else(links.kind == "connect_open", 1, -1))
    return links.groupby(links.region, links.dst_region).reduce(
        links.region, links.dst_region, live=pw.reducers.sum(links.step)
    )


@pw.udf
def first_ten(sums: tuple[tuple[int, str], ...]) -> tuple[tuple[int, str, int], ...]:
    return tuple((place, app, -less) for place, (less, app) in enumerate(sums[:10], 1))


def top():
    closed = fleet.filter(fleet.kind == "connect_close")
    minute = pw.temporal.sliding(hop=5_000, duration=60_000)
    sums = closed.windowby(closed.event_time_ms, window=minute, instance=closed.app).reduce(
        ends=pw.this._pw_window_end, app=pw.this._pw_instance, bytes=pw.reducers.sum(pw.this.bytes)
    )
    sums = sums.select(sums.ends, entry=pw.make_tuple(-sums.bytes, sums.app))
    minutes = sums.groupby(sums.ends).reduce(sums.ends, entries=pw.reducers.sorted_tuple(sums.entry))
    ranked = minutes.select(minutes.ends, row=first_ten(minutes.entries)).flatten(pw.this.row)
    return ranked.select(ranked.ends, place=ranked.row[0], app=ranked.row[1], bytes=ranked.row[2])


def used():
    samples = fleet.filter(fleet.kind == "cpu_sample")
    window = pw.temporal.tumbling(duration=10_000)
    return samples.windowby(samples.event_time_ms, window=window, instance=samples.app).reduce(
        ends=pw.this._pw_window_end, app=pw.this._pw_instance, **usage()
    )


def containers():
    samples = fleet.filter(fleet.kind == "cpu_sample")
    return samples.groupby(samples.container_id).reduce(samples.container_id, **usage())


def attacks():
    def one_of(column, values):
        found = column == values[0]
        for value in values[1:]:
            found = found | (column == value)
        return found

    def step(condition):
        rows = fleet.filter(condition)
        return rows.select(name=rows.container_id, at=rows.event_time_ms)

    shells = step((fleet.kind == "exec") & one_of(fleet.path, ["/bin/sh", "/bin/bash"]))
    secrets = ["/etc/shadow", "/root/.aws/credentials", "/root/.ssh/id_rsa"]
    reads = step((fleet.kind == "file_open") & one_of(fleet.path, secrets))
    leaves = step((fleet.kind == "connect_open") & (fleet.region != fleet.dst_region))
    after = {"how": pw.JoinMode.LEFT, "direction": pw.temporal.Direction.FORWARD}
    begun = shells.asof_join(reads, shells.at, reads.at, shells.name == reads.name, **after).select(
        name=shells.name, shell=shells.at, read=reads.at
    )
    begun = begun.filter(begun.read.is_not_none())
    begun = begun.select(begun.name, begun.shell, read=pw.unwrap(begun.read))
    done = begun.asof_join(leaves, begun.read, leaves.at, begun.name == leaves.name, **after).select(
        begun.name, begun.shell, begun.read, leave=leaves.at
    )
    done = done.filter(done.leave.is_not_none())
    done = done.select(done.name, done.shell, done.read, leave=pw.unwrap(done.leave))
    return done.filter(done.leave - done.shell < 600_000)


questions = {"q1": live, "q2": top, "q3": used, "q4": attacks, "q5": containers}
changes = answer + ".changes"
pw.io.csv.write(questions[query](), changes)
begun, cpu = time.perf_counter(), time.process_time()
pw.run(monitoring_level=pw.MonitoringLevel.NONE)
print("SECONDS", time.perf_counter() - begun)
print("CPU", time.process_time() - cpu)

# The last two columns of a change are its time and its sign.
rows = Counter()
with open(changes) as file:
    for row in list(csv.reader(file))[1:]:
        rows[",".join(row[:-2])] += int(row[-1])
with open(answer, "w") as file:
    for row, times in rows.items():
        file.write((row + "\n") * times)
