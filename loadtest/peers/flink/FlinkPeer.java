// Flink SQL in one process: streaming mode, no checkpoints, state on the heap, mini-batches. Called as: QUERY SHAPE DIR ANSWER.
import java.io.PrintWriter;
import java.lang.management.ManagementFactory;
import java.util.HashMap;
import java.util.Map;
import java.util.StringJoiner;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.table.api.TableResult;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.types.Row;
import org.apache.flink.types.RowKind;
import org.apache.flink.util.CloseableIterator;

public class FlinkPeer {
  static final String USAGE = "SUM(cpu_ms), COUNT(*), MAX(cpu_ms), MAX(mem_bytes)";
  static final String ENDS = "CAST(EXTRACT(EPOCH FROM window_end) AS BIGINT) * 1000";

  static String question(String query) {
    return switch (query) {
      case "q1" -> "SELECT region, dst_region, SUM(CASE WHEN kind = 'connect_open' THEN 1 ELSE -1 END) FROM fleet"
          + " WHERE kind = 'connect_open' OR kind = 'connect_close' GROUP BY region, dst_region";
      case "q2" -> "SELECT " + ENDS + ", place, app, total FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end"
          + " ORDER BY total DESC, app) AS place FROM (SELECT window_start, window_end, app, SUM(`bytes`) AS total"
          + " FROM HOP(TABLE fleet, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '60' SECOND)"
          + " WHERE kind = 'connect_close' GROUP BY window_start, window_end, app)) WHERE place <= 10";
      case "q3" -> "SELECT " + ENDS + ", app, " + USAGE + " FROM TUMBLE(TABLE fleet, DESCRIPTOR(ts), INTERVAL '10' SECOND)"
          + " WHERE kind = 'cpu_sample' GROUP BY window_start, window_end, app";
      case "q4" -> "SELECT container_id, shell, rd, leave FROM (SELECT container_id, event_time_ms, ts, kind FROM fleet"
          + " WHERE kind = 'exec' AND path IN ('/bin/sh', '/bin/bash')"
          + " OR kind = 'file_open' AND path IN ('/etc/shadow', '/root/.aws/credentials', '/root/.ssh/id_rsa')"
          + " OR kind = 'connect_open' AND region <> dst_region) MATCH_RECOGNIZE (PARTITION BY container_id ORDER BY ts"
          + " MEASURES S.event_time_ms AS shell, R.event_time_ms AS rd, L.event_time_ms AS leave ONE ROW PER MATCH"
          + " AFTER MATCH SKIP TO NEXT ROW PATTERN (S U*? R V*? L) WITHIN INTERVAL '10' MINUTE"
          + " DEFINE S AS S.kind = 'exec', U AS U.kind <> 'file_open', R AS R.kind = 'file_open',"
          + " V AS V.kind <> 'connect_open', L AS L.kind = 'connect_open')";
      case "q5" -> "SELECT container_id, " + USAGE + " FROM fleet WHERE kind = 'cpu_sample' GROUP BY container_id";
      default -> throw new IllegalArgumentException("no query " + query);
    };
  }

  static double cpuSeconds() {
    var system = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    return system.getProcessCpuTime() / 1e9;
  }

  public static void main(String[] arguments) throws Exception {
    String query = arguments[0], folder = arguments[2], answer = arguments[3];
    int workers = Integer.parseInt(System.getenv("PEER_WORKERS"));
    long lateMs = Long.parseLong(System.getenv("PEER_LATE_MS"));
    Configuration settings = new Configuration();
    settings.setString("pipeline.object-reuse", "true");
    settings.setString("parallelism.default", Integer.toString(workers));
    settings.setString("table.local-time-zone", "UTC");
    settings.setString("table.exec.mini-batch.enabled", "true");
    settings.setString("table.exec.mini-batch.allow-latency", "500 ms");
    settings.setString("table.exec.mini-batch.size", "50000");
    StreamExecutionEnvironment place = StreamExecutionEnvironment.createLocalEnvironment(workers, settings);
    StreamTableEnvironment tables = StreamTableEnvironment.create(place);
    String watermark = lateMs == 0 ? "ts" : "ts - INTERVAL '" + lateMs / 1000 + "' SECOND(3)";
    tables.executeSql("CREATE TEMPORARY TABLE fleet (event_time_ms BIGINT, host_id STRING, region STRING, container_id STRING,"
        + " app STRING, pid INT, kind STRING, dst_ip STRING, dst_region STRING, dst_app STRING, `bytes` BIGINT, cpu_ms BIGINT,"
        + " mem_bytes BIGINT, path STRING, ts AS TO_TIMESTAMP_LTZ(COALESCE(event_time_ms, 0), 3), WATERMARK FOR ts AS " + watermark
        + ") WITH ('connector' = 'filesystem', 'path' = 'file://" + folder + "', 'source.path.regex-pattern' = '.*/part-[0-9]+[.]csv',"
        // The header is a row that cannot be parsed.
        + " 'format' = 'csv', 'csv.ignore-parse-errors' = 'true')");

    long begun = System.nanoTime();
    double cpu = cpuSeconds();
    Map<String, Long> rows = new HashMap<>();
    TableResult result = tables.sqlQuery(question(query)).execute();
    try (CloseableIterator<Row> changes = result.collect()) {
      while (changes.hasNext()) {
        Row change = changes.next();
        boolean gone = change.getKind() == RowKind.UPDATE_BEFORE || change.getKind() == RowKind.DELETE;
        StringJoiner line = new StringJoiner(",");
        for (int field = 0; field < change.getArity(); field++) line.add(String.valueOf(change.getField(field)));
        rows.merge(line.toString(), gone ? -1L : 1L, Long::sum);
      }
    }
    System.out.println("SECONDS " + (System.nanoTime() - begun) / 1e9);
    System.out.println("CPU " + (cpuSeconds() - cpu));
    try (PrintWriter file = new PrintWriter(answer)) {
      rows.forEach((line, times) -> { for (long time = 0; time < times; time++) file.print(line + "\n"); });
    }
    System.exit(0);
  }
}
