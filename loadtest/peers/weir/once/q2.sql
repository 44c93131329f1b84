-- As ../q2.sql, where an event that comes again counts once.
SELECT window_end, rank, app, bytes
FROM (
  SELECT window_end, app, bytes, row_number() OVER (PARTITION BY window_end ORDER BY bytes DESC, app) AS rank
  FROM (
    SELECT window_end, app, sum(bytes) AS bytes
    FROM (
      SELECT DISTINCT window_end, event_time_ms, container_id, app, bytes
      FROM HOP(fleet, event_time_ms, INTERVAL '5 seconds', INTERVAL '60 seconds')
      WHERE kind = 'connect_close'
    ) AS once
    GROUP BY window_end, app
  ) AS sums
) AS ranked
WHERE rank <= 10;
