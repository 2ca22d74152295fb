//! The process's own costs, under the names that Prometheus' client libraries use.

use {
    prometheus::{
        Counter, Gauge,
        core::{Collector, Desc},
        proto::MetricFamily,
    },
    rustix::{
        param::page_size,
        process::{Resource, getrlimit},
        time::{ClockId, clock_gettime},
    },
    std::{fs, time::SystemTime},
};

/// CPU time, memory and descriptors, read when somebody asks.
#[derive(Clone)]
pub(crate) struct ProcessCollector {
    cpu: Counter,
    resident: Gauge,
    open: Gauge,
    limit: Gauge,
    start: Gauge,
}

impl ProcessCollector {
    pub(crate) fn new() -> Self {
        let gauge = |name, help| Gauge::new(name, help).expect("the name is valid");
        let start = gauge(
            "process_start_time_seconds",
            "Start of the process, seconds since 1970.",
        );
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        start.set(now.unwrap_or_default().as_secs_f64());
        Self {
            cpu: Counter::new("process_cpu_seconds_total", "CPU time used, user and system.")
                .expect("the name is valid"),
            resident: gauge("process_resident_memory_bytes", "Resident memory."),
            open: gauge("process_open_fds", "Open descriptors."),
            limit: gauge("process_max_fds", "Limit of open descriptors."),
            start,
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "a metric is a float")]
    fn read(&self) {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        if let Some(pages) = resident_pages() {
            self.resident.set((pages * page_size() as u64) as f64);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // Reading the directory takes one itself.
            self.open.set(entries.count().saturating_sub(1) as f64);
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            self.limit.set(limit as f64);
        }
    }
}

fn resident_pages() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    statm.split_whitespace().nth(1)?.parse().ok()
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        let Self {
            cpu,
            resident,
            open,
            limit,
            start,
        } = self;
        let gauges = [resident, open, limit, start]
            .into_iter()
            .flat_map(Collector::desc);
        cpu.desc().into_iter().chain(gauges).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        let Self {
            cpu,
            resident,
            open,
            limit,
            start,
        } = self;
        let gauges = [resident, open, limit, start]
            .into_iter()
            .flat_map(Collector::collect);
        cpu.collect().into_iter().chain(gauges).collect()
    }
}
