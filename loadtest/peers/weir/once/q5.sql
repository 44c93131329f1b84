-- As ../q5.sql, where an event that comes again counts once.
SELECT container_id, sum(cpu_ms) AS sum_cpu, count(*) AS samples, max(cpu_ms) AS max_cpu, max(mem_bytes) AS max_mem
FROM (SELECT DISTINCT event_time_ms, container_id, cpu_ms, mem_bytes FROM fleet WHERE kind = 'cpu_sample') AS once
GROUP BY container_id;
