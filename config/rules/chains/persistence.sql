-- How an intruder stays, hides, and does harm.

-- A program from a folder for temporary files talks to a mining pool's port and stays by a task.
CREATE RULE miner_installed AS SEQUENCE BY host WITH MAXSPAN INTERVAL '30 minutes' SEVERITY critical ATTACK 'T1496.001', 'T1053.003', 'attack.impact'
  [kind = 'exec' AND (path LIKE '/tmp/%' OR path LIKE '/var/tmp/%' OR path LIKE '/dev/shm/%')] AS ran
  [kind = 'connect' AND dst_port IN (3333, 4444, 5555, 7777, 14444)] AS pool
  [kind IN ('write', 'rename') AND (path LIKE '/etc/cron%' OR path LIKE '/var/spool/cron/%' OR path LIKE '/etc/systemd/system/%')] AS stays;

-- A unit is written by no package manager, and systemctl runs.
CREATE RULE unit_written_and_started AS SEQUENCE BY host WITH MAXSPAN INTERVAL '10 minutes' SEVERITY warning ATTACK 'T1543.002', 'attack.persistence'
  [kind IN ('write', 'rename') AND path LIKE '/etc/systemd/system/%' AND exe NOT LIKE '%/dpkg' AND exe NOT LIKE '%/rpm' AND exe NOT LIKE '%/systemctl'] AS written
  [kind = 'exec' AND path LIKE '%/systemctl'] AS started;

-- A kernel module is loaded and logs or histories are deleted.
CREATE RULE rootkit_loaded_and_traces_removed AS SEQUENCE BY host WITH MAXSPAN INTERVAL '30 minutes' SEVERITY critical ATTACK 'T1547.006', 'T1070.002', 'attack.defense-evasion'
  [kind = 'module' AND exe NOT LIKE '%/systemd-udevd' AND exe NOT LIKE '%/systemd-modules-load'] AS loaded
  [kind IN ('unlink', 'rename') AND (path LIKE '/var/log/%' OR path LIKE '%/.bash_history')] AS removed;

-- A process becomes root, and the same process changes accounts.
CREATE RULE became_root_and_changed_accounts AS SEQUENCE BY host, pid WITH MAXSPAN INTERVAL '5 minutes' SEVERITY error ATTACK 'T1068', 'T1136.001', 'attack.privilege-escalation'
  [kind = 'setuid' AND exe NOT LIKE '%/sudo' AND exe NOT LIKE '%/su' AND exe NOT LIKE '%/sshd' AND exe NOT LIKE '%/cron'] AS became_root
  [kind IN ('write', 'rename', 'open') AND path IN ('/etc/passwd', '/etc/shadow', '/etc/sudoers')] AS changed;

-- A program from a folder for temporary files runs, is deleted, and still calls out.
CREATE RULE ran_and_deleted_itself AS SEQUENCE BY host, pid WITH MAXSPAN INTERVAL '10 minutes' SEVERITY error ATTACK 'T1070.004', 'attack.defense-evasion'
  [kind = 'exec' AND (path LIKE '/tmp/%' OR path LIKE '/var/tmp/%' OR path LIKE '/dev/shm/%')] AS ran
  [kind = 'unlink' AND (path LIKE '/tmp/%' OR path LIKE '/var/tmp/%' OR path LIKE '/dev/shm/%')] AS deleted
  [kind = 'connect' AND dst_ip NOT LIKE '127.%' AND dst_ip <> '::1'] AS called;

-- Files are renamed again and again by one process right after it deleted backups.
CREATE RULE encrypted_and_renamed AS SEQUENCE BY host, pid WITH MAXSPAN INTERVAL '5 minutes' SEVERITY critical ATTACK 'T1486', 'T1490', 'attack.impact'
  [kind = 'unlink' AND (path LIKE '%.bak' OR path LIKE '%/backup%' OR path LIKE '%.snapshot')] AS backup
  [kind = 'rename' AND (path_to LIKE '%.locked' OR path_to LIKE '%.encrypted' OR path_to LIKE '%.crypt')] AS first
  [kind = 'rename' AND (path_to LIKE '%.locked' OR path_to LIKE '%.encrypted' OR path_to LIKE '%.crypt')] AS second;

-- The collector of audit records is stopped, and nobody starts it again within five minutes.
CREATE RULE audit_stopped_and_nobody_restarted AS SEQUENCE BY host WITH MAXSPAN INTERVAL '5 minutes' SEVERITY error ATTACK 'T1562.001', 'attack.defense-evasion'
  [kind = 'exec' AND path LIKE '%/systemctl' AND (cmdline LIKE '% stop auditd%' OR cmdline LIKE '% stop falco%')] AS stopped
  [kind = 'exit' AND (exe LIKE '%/auditd' OR exe LIKE '%/falco')] AS ended
  ![kind = 'exec' AND (path LIKE '%/auditd' OR path LIKE '%/falco')];
