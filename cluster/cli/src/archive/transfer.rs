//! `weir archive export` and `import`: rows out of an archive and into one.

use std::io::Write as _;
use std::path::Path;

use weir_archive::{Archive, Exported, Imported, LineDefaults, Store, files_only, import_archive, import_lines};
use weir_cluster::record::CONVERT;
use weir_schema::Name;

use super::{now_ms, open, progress_to_stderr, store_that_is_there};

pub(super) async fn export(location: &str, predicate: Option<&str>, out: &Path) -> anyhow::Result<()> {
    let snapshot = files_only(open(location).await?).await?;
    let exported = weir_archive::export(&snapshot, predicate, out, now_ms()?).await?;
    let Exported { rows, files, bytes, head } = exported;
    let mut to = std::io::stdout().lock();
    writeln!(to, "{} events, {} samples, {files} files, {bytes} bytes, head {head}", rows.events, rows.samples)?;
    to.flush()?;
    Ok(())
}

pub(super) async fn import(location: &str, path: &str, tenant: Option<Name>, region: Option<Name>) -> anyhow::Result<()> {
    let is_archive = path.contains("://") || Path::new(path).is_dir();
    if is_archive && (tenant.is_some() || region.is_some()) {
        anyhow::bail!("--tenant and --region are for JSON lines: the rows of {path} have theirs");
    }
    if !is_archive && !Path::new(path).is_file() {
        anyhow::bail!("could not import {path}: it is neither a directory nor a file; check the path");
    }
    // Before the target, which is made when it is missing.
    let source = if is_archive { Some(store_that_is_there(path)?) } else { None };
    let target = Archive::open(Store::open(location)?).await?;
    let imported = match source {
        Some(source) => import_archive(&target, source, now_ms()?, &mut progress_to_stderr()).await?,
        None => {
            let known = LineDefaults::default();
            let defaults = LineDefaults { tenant: tenant.unwrap_or(known.tenant), region: region.unwrap_or(known.region) };
            import_lines(&target, Path::new(path), &defaults, CONVERT, now_ms()?).await?
        }
    };
    report(&imported)
}

fn report(imported: &Imported) -> anyhow::Result<()> {
    let Imported { events, samples, known, files, bytes, bad_lines, bad_lines_first, texts_cut, manifest } = imported;
    for bad in bad_lines_first {
        eprintln!("line {}: {}", bad.number, bad.why);
    }
    if *bad_lines > bad_lines_first.len() as u64 {
        eprintln!("… and {} lines more", bad_lines - bad_lines_first.len() as u64);
    }
    if *texts_cut > 0 {
        eprintln!("{texts_cut} texts were longer than a text may be, and were cut");
    }
    let mut to = std::io::stdout().lock();
    write!(
        to,
        "{events} events, {samples} samples, {files} files, {bytes} bytes; passed over: {known} known, {bad_lines} no events"
    )?;
    match manifest {
        Some(number) => writeln!(to, "; in the archive since manifest {number}")?,
        None => writeln!(to, "; nothing to add")?,
    }
    to.flush()?;
    Ok(())
}
