-- As ../q1.sql, where an event that comes again counts once.
SELECT region, dst_region, sum(CASE kind WHEN 'connect_open' THEN 1 ELSE -1 END) AS live
FROM (
  SELECT DISTINCT event_time_ms, container_id, kind, region, dst_region
  FROM fleet
  WHERE kind IN ('connect_open', 'connect_close')
) AS once
GROUP BY region, dst_region;
