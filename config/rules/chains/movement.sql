-- From host to host.

-- Somebody comes in by ssh and goes on by ssh from a shell of that host.
CREATE RULE ssh_from_host_to_host AS SEQUENCE BY host WITH MAXSPAN INTERVAL '10 minutes' SEVERITY warning ATTACK 'T1021.004', 'attack.lateral-movement'
  [kind = 'accept' AND exe LIKE '%/sshd'] AS came
  [kind = 'exec' AND path IN ('/bin/sh', '/usr/bin/sh', '/bin/bash', '/usr/bin/bash', '/bin/dash', '/usr/bin/dash', '/bin/busybox') AND parent_exe LIKE '%/sshd%'] AS shell
  [kind = 'connect' AND dst_port = 22 AND exe LIKE '%/ssh'] AS went_on;

-- An address is refused by ssh again and again and comes in on some host.
CREATE RULE refused_on_one_host_let_in_on_another AS SEQUENCE BY dst_ip WITH MAXSPAN INTERVAL '10 minutes' SEVERITY error ATTACK 'T1110.003', 'attack.credential-access'
  [kind = 'connect' AND dst_port = 22 AND result <> 0] AS refused
  [kind = 'connect' AND dst_port = 22 AND result <> 0] AS refused_again
  [kind = 'connect' AND dst_port = 22 AND result <> 0] AS refused_once_more
  [kind = 'connect' AND dst_port = 22 AND result = 0] AS let_in;

-- A scanner runs and a tool of remote administration follows.
CREATE RULE scan_then_remote_tool AS SEQUENCE BY host WITH MAXSPAN INTERVAL '30 minutes' SEVERITY error ATTACK 'T1046', 'T1021.004', 'attack.discovery'
  [kind = 'exec' AND (path LIKE '%/nmap' OR path LIKE '%/masscan' OR path LIKE '%/zmap')] AS scanned
  [kind = 'exec' AND (path LIKE '%/ssh' OR path LIKE '%/psexec.py' OR path LIKE '%/smbclient' OR path LIKE '%/rdesktop' OR path LIKE '%/evil-winrm')] AS tool;

-- A key is written to authorized_keys and somebody comes in by ssh.
CREATE RULE key_planted_then_login AS SEQUENCE BY host WITH MAXSPAN INTERVAL '60 minutes' SEVERITY error ATTACK 'T1098.004', 'T1021.004', 'attack.persistence'
  [kind IN ('write', 'rename') AND path LIKE '%/.ssh/authorized_keys' AND exe NOT LIKE '%/ansible%'] AS planted
  [kind = 'accept' AND exe LIKE '%/sshd'] AS came
  [kind = 'exec' AND path IN ('/bin/sh', '/usr/bin/sh', '/bin/bash', '/usr/bin/bash', '/bin/dash', '/usr/bin/dash', '/bin/busybox') AND parent_exe LIKE '%/sshd%'] AS shell;
