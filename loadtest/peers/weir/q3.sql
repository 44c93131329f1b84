-- What each application uses, by ten seconds.
SELECT window_end, app, sum(cpu_ms) AS sum_cpu, count(*) AS samples, max(cpu_ms) AS max_cpu, max(mem_bytes) AS max_mem
FROM TUMBLE(fleet, event_time_ms, INTERVAL '10 seconds')
WHERE kind = 'cpu_sample'
GROUP BY window_end, app;
