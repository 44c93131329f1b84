"""DuckDB reads all files and answers one query from scratch. Called as: QUERY SHAPE DIR ANSWER."""

import os
import sys
import time

import duckdb

query, shape, folder, answer = sys.argv[1:]
rows = f"read_csv('{folder}/part-*.csv', header = true)"
fleet = f"(SELECT DISTINCT * FROM {rows})" if shape == "duplicates" else rows
usage = "sum(cpu_ms)::BIGINT, count(*), max(cpu_ms), max(mem_bytes)"

questions = {
    "q1": f"""
        SELECT region, dst_region, count(*) FILTER (kind = 'connect_open') - count(*) FILTER (kind = 'connect_close')
        FROM {fleet} WHERE starts_with(kind, 'connect_') GROUP BY ALL""",
    # Sums by five seconds first, then twelve of them to a minute.
    "q2": f"""
        WITH panes AS (
            SELECT event_time_ms // 5000 AS pane, app, sum(bytes)::BIGINT AS bytes
            FROM {fleet} WHERE kind = 'connect_close' GROUP BY ALL),
        minutes AS (
            SELECT (pane + step) * 5000 AS ends, app, sum(bytes)::BIGINT AS bytes
            FROM panes, range(1, 13) AS steps(step) GROUP BY ALL)
        SELECT ends, row_number() OVER (PARTITION BY ends ORDER BY bytes DESC, app) AS place, app, bytes
        FROM minutes QUALIFY place <= 10""",
    "q3": f"""
        SELECT (event_time_ms // 10000 + 1) * 10000, app, {usage}
        FROM {fleet} WHERE kind = 'cpu_sample' GROUP BY ALL""",
    "q4": f"""
        WITH steps AS MATERIALIZED (
            SELECT container_id AS id, event_time_ms AS t, kind FROM {fleet}
            WHERE kind = 'exec' AND path IN ('/bin/sh', '/bin/bash')
               OR kind = 'file_open' AND path IN ('/etc/shadow', '/root/.aws/credentials', '/root/.ssh/id_rsa')
               OR kind = 'connect_open' AND region <> dst_region),
        shells AS (SELECT id, t FROM steps WHERE kind = 'exec'),
        reads AS (SELECT id, t FROM steps WHERE kind = 'file_open'),
        leaves AS (SELECT id, t FROM steps WHERE kind = 'connect_open'),
        begun AS (
            SELECT s.id, s.t AS shell, r.t AS read
            FROM shells s ASOF JOIN reads r ON s.id = r.id AND s.t < r.t)
        SELECT b.id, b.shell, b.read, l.t
        FROM begun b ASOF JOIN leaves l ON b.id = l.id AND b.read < l.t
        WHERE l.t - b.shell < 600000""",
    "q5": f"SELECT container_id, {usage} FROM {fleet} WHERE kind = 'cpu_sample' GROUP BY ALL",
}

database = duckdb.connect(config={"threads": os.environ["PEER_WORKERS"]})
begun, cpu = time.perf_counter(), time.process_time()
found = database.execute(questions[query]).fetchall()
print("SECONDS", time.perf_counter() - begun)
print("CPU", time.process_time() - cpu)
with open(answer, "w") as file:
    for row in found:
        print(*row, sep=",", file=file)
