-- As ../q3.sql, where an event that comes again counts once.
SELECT window_end, app, sum(cpu_ms) AS sum_cpu, count(*) AS samples, max(cpu_ms) AS max_cpu, max(mem_bytes) AS max_mem
FROM (
  SELECT DISTINCT window_end, event_time_ms, container_id, app, cpu_ms, mem_bytes
  FROM TUMBLE(fleet, event_time_ms, INTERVAL '10 seconds')
  WHERE kind = 'cpu_sample'
) AS once
GROUP BY window_end, app;
