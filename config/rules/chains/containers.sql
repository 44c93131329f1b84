-- Ways out of a container, and what a stolen token is used for.

-- A process in a container enters another namespace and runs a shell.
CREATE RULE container_escape_by_namespace AS SEQUENCE BY host, pid WITH MAXSPAN INTERVAL '1 minute' SEVERITY critical ATTACK 'T1611', 'attack.privilege-escalation'
  [kind IN ('setns', 'unshare') AND container_id IS NOT NULL] AS entered
  [kind = 'exec' AND path IN ('/bin/sh', '/usr/bin/sh', '/bin/bash', '/usr/bin/bash', '/bin/dash', '/usr/bin/dash', '/bin/busybox')] AS shell;

-- A container mounts a disk and something writes accounts or tasks of the host.
CREATE RULE container_mounts_host_and_changes_it AS SEQUENCE BY host, container_id WITH MAXSPAN INTERVAL '10 minutes' SEVERITY critical ATTACK 'T1611', 'T1053.003', 'attack.persistence'
  [kind = 'mount'] AS mounted
  [kind IN ('write', 'rename', 'open') AND (path LIKE '%/etc/cron%' OR path LIKE '%/etc/passwd' OR path LIKE '%/root/.ssh/authorized_keys') AND path NOT LIKE '/etc/%'] AS changed;

-- A service account's token is read by a tool, and the API is called.
CREATE RULE service_token_read_and_used AS SEQUENCE BY host, container_id WITH MAXSPAN INTERVAL '5 minutes' SEVERITY error ATTACK 'T1528', 'T1552.007', 'attack.credential-access'
  [kind = 'open' AND (path LIKE '/var/run/secrets/kubernetes.io/%' OR path LIKE '/run/secrets/kubernetes.io/%') AND (exe LIKE '%/cat' OR exe LIKE '%/sh' OR exe LIKE '%/bash' OR exe LIKE '%/curl')] AS read
  [kind = 'connect' AND dst_port IN (443, 6443) AND (exe LIKE '%/curl' OR exe LIKE '%/kubectl' OR exe LIKE '%/wget')] AS used;

-- The socket of the container engine is used from a container, and a client runs.
CREATE RULE container_socket_then_new_container AS SEQUENCE BY host, container_id WITH MAXSPAN INTERVAL '5 minutes' SEVERITY error ATTACK 'T1610', 'T1611', 'attack.execution'
  [kind IN ('open', 'connect') AND (path LIKE '%/docker.sock' OR path LIKE '%/containerd.sock' OR path LIKE '%/crio.sock')] AS socket
  [kind = 'exec' AND (path LIKE '%/docker' OR path LIKE '%/ctr' OR path LIKE '%/crictl')] AS client;
