//! Hooks the system calls of `call_table`, entry and exit, and takes them off again.
//!
//! Taking a tracepoint off costs the kernel tens of milliseconds, one after the other: sixty calls are seconds. So they are told to stay
//! silent first, all at once, and a thread takes them off while the agent goes on to its end. Promise: once stopped, nothing is written
//! any more.

use std::os::fd::{AsFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{Array, MapData, MapError};
use aya::programs::Program;

use super::call_table::{self, CallName};
use super::load::{HookState, Report, chain};
use super::system;
use super::tracefs::Tracefs;

/// The hooked calls. Dropping stops them.
pub(super) struct CallHooks {
    events: Vec<OwnedFd>,
    stopped: Array<MapData, u32>,
}

impl CallHooks {
    /// Nothing hooked yet; the kernel half knows the numbers.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        call_table::fill(ebpf)?;
        let stopped = Array::try_from(ebpf.take_map("STOPPED").expect("declared in call.h"))?;
        Ok(Self { events: Vec::new(), stopped })
    }

    /// Entry and exit of every wanted call: both or none.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        tracefs: &std::io::Result<Tracefs>,
        wanted: &[CallName],
        report: &mut Report,
    ) {
        if wanted.is_empty() {
            return;
        }
        let ready = match tracefs {
            Ok(tracefs) => PROGRAMS.iter().try_for_each(|program| load(ebpf, program)).map(|()| tracefs),
            Err(e) => Err(format!("tracefs: {e}; mount -t tracefs tracefs /sys/kernel/tracing")),
        };
        let tracefs = match ready {
            Ok(tracefs) => tracefs,
            // One line, not sixty: all have the same cause.
            Err(why) => return report.hooks.push(HookState { name: "system calls", attached: false, why: Some(why) }),
        };
        for name in wanted {
            let why = pair(ebpf, *name, tracefs).map(|events| self.events.extend(events)).err();
            report.hooks.push(HookState { name: name.as_str(), attached: why.is_none(), why });
        }
    }

    /// After this no record of a call is written.
    pub(super) fn stop(&mut self) {
        if self.events.is_empty() {
            return;
        }
        if self.stopped.set(0, 1, 0).is_ok() && system::wait_for_every_cpu() {
            let events = std::mem::take(&mut self.events);
            let closed = std::thread::Builder::new().name("unhook".to_owned()).spawn(move || drop(events));
            // Without a thread the closure, and with it the events, was dropped here.
            drop(closed);
        } else {
            self.events.clear();
        }
    }
}

impl Drop for CallHooks {
    fn drop(&mut self) {
        self.stop();
    }
}

fn load(ebpf: &mut Ebpf, program: &str) -> Result<(), String> {
    match ebpf.program_mut(program).expect("the object holds it: a test looks") {
        Program::TracePoint(p) => p.load().map_err(|e| chain(&e)),
        _ => Err("not a tracepoint".to_owned()),
    }
}

/// The exit first: an entry without its exit would be kept for nothing.
fn pair(ebpf: &Ebpf, name: CallName, tracefs: &Tracefs) -> Result<[OwnedFd; 2], String> {
    let attach = |program: &str, point: String| {
        let program = ebpf.program(program).expect("the object holds it: a test looks");
        let Program::TracePoint(program) = program else { return Err("not a tracepoint".to_owned()) };
        let program = program.fd().map_err(|e| chain(&e))?;
        tracefs.attach(&point, program.as_fd()).map_err(|e| format!("tracepoint {point}: {e}"))
    };
    let exit = attach(PROGRAMS[1], format!("sys_exit_{}", name.as_str()))?;
    Ok([attach(PROGRAMS[0], format!("sys_enter_{}", name.as_str()))?, exit])
}

/// Entry and exit of every call.
pub(super) const PROGRAMS: [&str; 2] = ["e_call", "x_call"];
