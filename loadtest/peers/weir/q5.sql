-- What each container has used so far: as many rows as there are containers.
SELECT container_id, sum(cpu_ms) AS sum_cpu, count(*) AS samples, max(cpu_ms) AS max_cpu, max(mem_bytes) AS max_mem
FROM fleet
WHERE kind = 'cpu_sample'
GROUP BY container_id;
