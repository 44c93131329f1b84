-- How an intruder gets in, runs code, and takes data out.

-- A web server starts a shell, somebody looks around, and something calls out.
CREATE RULE web_shell_calls_out AS SEQUENCE BY host WITH MAXSPAN INTERVAL '5 minutes' SEVERITY critical ATTACK 'T1505.003', 'T1059.004', 'attack.execution'
  [kind = 'exec' AND path IN ('/bin/sh', '/usr/bin/sh', '/bin/bash', '/usr/bin/bash', '/bin/dash', '/usr/bin/dash', '/bin/busybox') AND (parent_exe LIKE '%/nginx' OR parent_exe LIKE '%/apache2' OR parent_exe LIKE '%/httpd' OR parent_exe LIKE '%/php-fpm%' OR parent_exe LIKE '%/gunicorn')] AS shell
  [kind = 'exec' AND (path LIKE '%/id' OR path LIKE '%/whoami' OR path LIKE '%/uname' OR path LIKE '%/hostname')] AS looked
  [kind = 'connect' AND dst_ip NOT LIKE '127.%' AND dst_ip <> '::1' AND exe NOT LIKE '%/nginx'] AS called;

-- A file is written to a folder for temporary files, made executable, run, and calls out.
CREATE RULE dropped_made_executable_run_calls_out AS SEQUENCE BY host WITH MAXSPAN INTERVAL '10 minutes' SEVERITY critical ATTACK 'T1105', 'T1222.002', 'attack.command-and-control'
  [kind IN ('write', 'rename') AND (path LIKE '/tmp/%' OR path LIKE '/var/tmp/%' OR path LIKE '/dev/shm/%')] AS dropped
  [kind = 'chmod' AND (path LIKE '/tmp/%' OR path LIKE '/var/tmp/%' OR path LIKE '/dev/shm/%')] AS executable
  [kind = 'exec' AND (path LIKE '/tmp/%' OR path LIKE '/var/tmp/%' OR path LIKE '/dev/shm/%')] AS ran
  [kind = 'connect' AND dst_ip NOT LIKE '127.%' AND dst_ip <> '::1' AND (exe LIKE '/tmp/%' OR exe LIKE '/var/tmp/%' OR exe LIKE '/dev/shm/%')] AS called;

-- A downloader runs, and a file from a folder for temporary files runs behind it.
CREATE RULE download_and_run AS SEQUENCE BY host WITH MAXSPAN INTERVAL '2 minutes' SEVERITY error ATTACK 'T1105', 'T1059.004', 'attack.execution'
  [kind = 'exec' AND (path LIKE '%/curl' OR path LIKE '%/wget')] AS downloader
  [kind IN ('write', 'rename') AND (path LIKE '/tmp/%' OR path LIKE '/var/tmp/%' OR path LIKE '/dev/shm/%')] AS written
  [kind = 'exec' AND (path LIKE '/tmp/%' OR path LIKE '/var/tmp/%' OR path LIKE '/dev/shm/%')] AS ran;

-- Keys or password files are read and the same process calls out.
CREATE RULE secrets_read_and_sent AS SEQUENCE BY host, pid WITH MAXSPAN INTERVAL '5 minutes' SEVERITY critical ATTACK 'T1552.001', 'T1048', 'attack.exfiltration'
  [kind = 'open' AND (path IN ('/etc/shadow', '/etc/gshadow', '/etc/sudoers') OR path LIKE '%/.ssh/id_%' OR path LIKE '%/.aws/credentials' OR path LIKE '%/.kube/config') AND exe NOT LIKE '%/sshd' AND exe NOT LIKE '%/ssh' AND exe NOT LIKE '%/sudo'] AS read
  [kind = 'connect' AND dst_ip NOT LIKE '127.%' AND dst_ip <> '::1'] AS called;

-- Files are packed in a folder for temporary files, and an uploader calls out.
CREATE RULE archive_and_upload AS SEQUENCE BY host WITH MAXSPAN INTERVAL '30 minutes' SEVERITY error ATTACK 'T1560.001', 'T1048', 'attack.exfiltration'
  [kind = 'exec' AND (path LIKE '%/tar' OR path LIKE '%/zip' OR path LIKE '%/7z' OR path LIKE '%/gpg')] AS packed
  [kind IN ('write', 'rename', 'open') AND (path LIKE '/tmp/%' OR path LIKE '/var/tmp/%' OR path LIKE '/dev/shm/%') AND (path LIKE '%.gz' OR path LIKE '%.zip' OR path LIKE '%.7z' OR path LIKE '%.gpg')] AS archive
  [kind = 'connect' AND dst_ip NOT LIKE '127.%' AND dst_ip <> '::1' AND (exe LIKE '%/curl' OR exe LIKE '%/rclone' OR exe LIKE '%/scp' OR exe LIKE '%/nc' OR exe LIKE '%/ncat')] AS uploaded;

-- A shell's descriptors become a socket after it called out.
CREATE RULE reverse_shell AS SEQUENCE BY host, pid WITH MAXSPAN INTERVAL '1 minute' SEVERITY critical ATTACK 'T1059.004', 'T1095', 'attack.command-and-control'
  [kind = 'connect' AND dst_ip NOT LIKE '127.%' AND dst_ip <> '::1'] AS called
  [kind = 'dup'] AS joined
  [kind = 'exec' AND path IN ('/bin/sh', '/usr/bin/sh', '/bin/bash', '/usr/bin/bash', '/bin/dash', '/usr/bin/dash', '/bin/busybox')] AS shell;

-- A file in memory is made, run, and calls out.
CREATE RULE fileless_program_calls_out AS SEQUENCE BY host, pid WITH MAXSPAN INTERVAL '1 minute' SEVERITY critical ATTACK 'T1620', 'attack.defense-evasion'
  [kind = 'memfd'] AS made
  [kind = 'exec' AND (path LIKE 'memfd:%' OR path LIKE '/memfd:%' OR path LIKE '/proc/%/fd/%')] AS ran
  [kind = 'connect' AND dst_ip NOT LIKE '127.%' AND dst_ip <> '::1'] AS called;

-- A process is traced by another, and calls out.
CREATE RULE injected_process_calls_out AS SEQUENCE BY host, target_pid WITH MAXSPAN INTERVAL '2 minutes' SEVERITY error ATTACK 'T1055.008', 'attack.privilege-escalation'
  [kind = 'ptrace' AND target_pid IS NOT NULL AND exe NOT LIKE '%/gdb' AND exe NOT LIKE '%/strace'] AS traced
  [kind = 'connect' AND dst_ip NOT LIKE '127.%' AND dst_ip <> '::1' BY host, pid] AS called;
