-- As ../q4.sql, where an event that comes again counts once: the same chain from two copies of its start is one row.
CREATE RULE attack AS SEQUENCE FROM fleet BY container_id ORDER BY event_time_ms
  WITH MAXSPAN INTERVAL '10 minutes' OVERLAP
  [kind = 'exec' AND path IN ('/bin/sh', '/bin/bash')] AS exec
  [kind = 'file_open' AND path IN ('/etc/shadow', '/root/.aws/credentials', '/root/.ssh/id_rsa')] AS read
  [kind = 'connect_open' AND region <> dst_region] AS connect;

SELECT DISTINCT container_id, exec_time AS t_exec, read_time AS t_read, connect_time AS t_connect FROM attack;
