-- Live connections by region pair: one more with each open, one less with each close. Pairs that are back at zero stay.
SELECT region, dst_region, sum(CASE kind WHEN 'connect_open' THEN 1 ELSE -1 END) AS live
FROM fleet
WHERE kind IN ('connect_open', 'connect_close')
GROUP BY region, dst_region;
