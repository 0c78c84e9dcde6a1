package main

import (
	"errors"
	"runtime"
	"slices"
	"time"

	"github.com/extentd/extentd/nbd"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/telemetry"
)

// watch exports what the parts of the server count.
func (s *Server) watch(config *Config) error {
	return errors.Join(
		telemetry.Watch(s.telemetry, s.service.Stats, slices.Concat(serviceMetrics(), filterMetrics())...),
		telemetry.Watch(s.telemetry, s.processStats(config), processMetrics()...),
		telemetry.Watch(s.telemetry, s.loadStats(config), loadMetrics()...),
	)
}

// A labels names one of the metrics that share a name.
type labels = map[string]string

func serviceMetrics() []telemetry.Metric[service.Stats] {
	type metric = telemetry.Metric[service.Stats]
	const (
		opens   = "Images that were opened, or failed to."
		lookups = "Look-ups in the caches of open images: qcow2 tables (metadata), and decompressed clusters (unpacked)."
		leaks   = "Clusters that checks found leaked, and that they repaired."
		corrupt = "Corruptions that checks found, and that they repaired."
	)
	cache := func(cache, result string, of func(*service.Stats) float64) metric {
		return metric{Name: "extentd.cache.lookups", Unit: "{lookup}", Help: lookups, Labels: labels{"cache": cache, "result": result}, Of: of}
	}
	return []metric{
		{Name: "extentd.images.open", Unit: "{image}", Help: "Images that are open.", Gauge: true, Of: func(s *service.Stats) float64 { return float64(s.OpenImages) }},
		{Name: "extentd.images.open.limit", Unit: "{image}", Help: "Images that may be open at a time.", Gauge: true, Of: func(s *service.Stats) float64 { return float64(s.MaxOpen) }},
		{Name: "extentd.images.open.waiting", Unit: "{image}", Help: "Opens that wait until another image is closed.", Gauge: true, Of: func(s *service.Stats) float64 { return float64(s.WaitingOpens) }},
		{Name: "extentd.images.writing", Unit: "{image}", Help: "Open images that were written to.", Gauge: true, Of: func(s *service.Stats) float64 { return float64(s.Writing) }},
		{Name: "extentd.image.opens", Unit: "{open}", Help: opens, Labels: labels{"result": "ok"}, Of: func(s *service.Stats) float64 { return float64(s.Opens) }},
		{Name: "extentd.image.opens", Unit: "{open}", Help: opens, Labels: labels{"result": "failed"}, Of: func(s *service.Stats) float64 { return float64(s.OpenFailures) }},
		{Name: "extentd.image.lock.conflicts", Unit: "{open}", Help: "Opens that met the lock of another process.", Of: func(s *service.Stats) float64 { return float64(s.LockConflicts) }},
		{Name: "extentd.image.out_of_service", Unit: "{image}", Help: "Images that were taken out of service because a write failed.", Of: func(s *service.Stats) float64 { return float64(s.OutOfService) }},
		cache("metadata", "hit", func(s *service.Stats) float64 { return float64(s.MetadataHits) }),
		cache("metadata", "miss", func(s *service.Stats) float64 { return float64(s.MetadataMisses) }),
		cache("unpacked", "hit", func(s *service.Stats) float64 { return float64(s.UnpackedHits) }),
		cache("unpacked", "miss", func(s *service.Stats) float64 { return float64(s.UnpackedMisses) }),
		{Name: "extentd.cache.granted", Unit: "By", Help: "Memory that the caches of open images may fill.", Gauge: true, Of: func(s *service.Stats) float64 { return float64(s.CacheBytes) }},
		{Name: "extentd.cache.limit", Unit: "By", Help: "Memory that there is for caches of images.", Gauge: true, Of: func(s *service.Stats) float64 { return float64(s.MaxCacheBytes) }},
		{Name: "extentd.allocations", Unit: "{allocation}", Help: "Allocations that there are.", Gauge: true, Of: func(s *service.Stats) float64 { return float64(s.Allocations) }},
		{Name: "extentd.allocations.reserved", Unit: "By", Help: "Bytes that allocations hold, and that nothing has mapped.", Gauge: true, Of: func(s *service.Stats) float64 { return float64(s.AllocatedBytes) }},
		{Name: "extentd.checks", Unit: "{check}", Help: "Checks of images that were done.", Of: func(s *service.Stats) float64 { return float64(s.Checks) }},
		{Name: "extentd.check.leaks", Unit: "{cluster}", Help: leaks, Labels: labels{"state": "found"}, Of: func(s *service.Stats) float64 { return float64(s.Leaks) }},
		{Name: "extentd.check.leaks", Unit: "{cluster}", Help: leaks, Labels: labels{"state": "repaired"}, Of: func(s *service.Stats) float64 { return float64(s.LeaksFixed) }},
		{Name: "extentd.check.corruptions", Unit: "{corruption}", Help: corrupt, Labels: labels{"state": "found"}, Of: func(s *service.Stats) float64 { return float64(s.Corruptions) }},
		{Name: "extentd.check.corruptions", Unit: "{corruption}", Help: corrupt, Labels: labels{"state": "repaired"}, Of: func(s *service.Stats) float64 { return float64(s.CorruptionsFixed) }},
		{Name: "extentd.leaked.clusters", Unit: "{cluster}", Help: "Clusters that the last check of each image found leaked, and did not repair.", Gauge: true, Of: func(s *service.Stats) float64 { return float64(s.LeakedClusters) }},
	}
}

// filterMetrics are those of the filters of graphs: all that count, but for
// histograms.
func filterMetrics() []telemetry.Metric[service.Stats] {
	type metric = telemetry.Metric[service.Stats]
	of := func(kind, name string) func(*service.Stats) float64 {
		return func(s *service.Stats) float64 {
			return float64(s.Filters[service.FilterCounter{Kind: kind, Name: name}])
		}
	}
	all := []metric{{Name: "extentd.filter.cached", Unit: "By", Help: "Bytes that cache filters hold.", Gauge: true, Of: of("cache", "cached_bytes")}}
	add := func(kind string, names ...string) {
		for _, name := range names {
			all = append(all, metric{
				Name: "extentd.filter.events", Unit: "{event}", Help: "What the filters of all graphs have counted, by their kind and the name of the counter.",
				Labels: labels{"filter": kind, "counter": name}, Of: of(kind, name),
			})
		}
	}
	add("cache", "hits", "misses", "evictions", "errors")
	add("readahead", "prefetched", "used", "wasted")
	add("retry", "retries", "given_up")
	add("fault", "injected")
	for _, op := range []string{"read", "extents", "write", "zero", "trim", "truncate", "flush"} {
		add("stats", op+"_operations", op+"_bytes", op+"_errors")
	}
	return all
}

// processStats are what the process knows of itself, and of what has no part of
// its own.
type processStats struct {
	uptime            time.Duration
	memory            int64 // that it is to live within, bytes
	failures          uint64
	records, unlogged uint64 // of the audit
}

func (s *Server) processStats(config *Config) func() processStats {
	began := time.Now()
	return func() processStats {
		p := processStats{uptime: time.Since(began), memory: int64(config.Load.memory)}
		if s.failures != nil {
			p.failures = s.failures()
		}
		p.records, p.unlogged = s.audit.Stats()
		return p
	}
}

func processMetrics() []telemetry.Metric[processStats] {
	type metric = telemetry.Metric[processStats]
	const records = "Records of the audit log, and those that could not be written."
	return []metric{
		{
			Name: "extentd.build.info", Unit: "{build}", Help: "Always 1; the labels say which build this is.", Gauge: true,
			Labels: labels{"version": buildVersion(), "go_version": runtime.Version()}, Of: func(*processStats) float64 { return 1 },
		},
		{Name: "extentd.uptime", Unit: "s", Help: "Time since the server started.", Gauge: true, Of: func(p *processStats) float64 { return p.uptime.Seconds() }},
		{Name: "extentd.memory.limit", Unit: "By", Help: "Memory that the server is to live within.", Gauge: true, Of: func(p *processStats) float64 { return float64(p.memory) }},
		{Name: "extentd.auth.failures", Unit: "{attempt}", Help: "Attempts to authenticate that failed, or were slowed down.", Of: func(p *processStats) float64 { return float64(p.failures) }},
		{Name: "extentd.audit.records", Unit: "{record}", Help: records, Labels: labels{"result": "written"}, Of: func(p *processStats) float64 { return float64(p.records) }},
		{Name: "extentd.audit.records", Unit: "{record}", Help: records, Labels: labels{"result": "failed"}, Of: func(p *processStats) float64 { return float64(p.unlogged) }},
	}
}

// loadStats are what clients of HTTP make the server hold, and what was too much.
type loadStats struct {
	connections, maxConnections, requests int64
	transfers, maxTransfers               int64 // bytes
	refused, limited, busy, stalled       int64
}

func (s *Server) loadStats(config *Config) func() loadStats {
	most := int64(config.Load.MaxConnections)
	return func() loadStats {
		c := s.limits.Counts()
		l := loadStats{
			requests: s.limits.Requests().UnderWay(), maxConnections: most,
			refused: c.Refused.Load(), limited: c.Limited.Load(), busy: c.Busy.Load(), stalled: c.Stalled.Load(),
		}
		if bound := s.limits.Connections(); bound != nil {
			l.connections = bound.Open()
		}
		if memory := s.limits.Memory(); memory != nil {
			l.transfers, l.maxTransfers = memory.Used(), memory.Total()
		}
		return l
	}
}

func loadMetrics() []telemetry.Metric[loadStats] {
	type metric = telemetry.Metric[loadStats]
	refused := func(reason string, of func(*loadStats) float64) metric {
		return metric{
			Name: "extentd.load.refusals", Unit: "{refusal}", Help: "What was refused or cut off because it was too much: connections, requests of one client (rate), requests for which there was no room (busy), and transfers in which nothing moved (stalled).",
			Labels: labels{"reason": reason}, Of: of,
		}
	}
	return []metric{
		refused("connections", func(l *loadStats) float64 { return float64(l.refused) }),
		refused("rate", func(l *loadStats) float64 { return float64(l.limited) }),
		refused("busy", func(l *loadStats) float64 { return float64(l.busy) }),
		refused("stalled", func(l *loadStats) float64 { return float64(l.stalled) }),
		{Name: "extentd.http.connections", Unit: "{connection}", Help: "Connections over HTTP that are open.", Gauge: true, Of: func(l *loadStats) float64 { return float64(l.connections) }},
		{Name: "extentd.http.connections.limit", Unit: "{connection}", Help: "Connections over HTTP that may be open at a time.", Gauge: true, Of: func(l *loadStats) float64 { return float64(l.maxConnections) }},
		{Name: "extentd.http.requests.active", Unit: "{request}", Help: "Requests over HTTP that are under way, but for probes.", Gauge: true, Of: func(l *loadStats) float64 { return float64(l.requests) }},
		{Name: "extentd.transfers.memory", Unit: "By", Help: "Memory that transfers over HTTP have for their buffers.", Gauge: true, Of: func(l *loadStats) float64 { return float64(l.transfers) }},
		{Name: "extentd.transfers.memory.limit", Unit: "By", Help: "Memory that there is for them.", Gauge: true, Of: func(l *loadStats) float64 { return float64(l.maxTransfers) }},
	}
}

// nbdMetrics are exported where NBD is spoken.
func nbdMetrics() []telemetry.Metric[nbd.Stats] {
	type metric = telemetry.Metric[nbd.Stats]
	const connections = "Connections over NBD that were served, and those that were one too many."
	all := []metric{
		{Name: "extentd.nbd.connections.open", Unit: "{connection}", Help: "Connections over NBD that are open.", Gauge: true, Of: func(s *nbd.Stats) float64 { return float64(s.Open) }},
		{Name: "extentd.nbd.connections", Unit: "{connection}", Help: connections, Labels: labels{"result": "served"}, Of: func(s *nbd.Stats) float64 { return float64(s.Connections) }},
		{Name: "extentd.nbd.connections", Unit: "{connection}", Help: connections, Labels: labels{"result": "refused"}, Of: func(s *nbd.Stats) float64 { return float64(s.Refused) }},
		{Name: "extentd.nbd.memory", Unit: "By", Help: "Memory that requests over NBD have.", Gauge: true, Of: func(s *nbd.Stats) float64 { return float64(s.Memory) }},
		{Name: "extentd.nbd.memory.limit", Unit: "By", Help: "Memory that there is for them.", Gauge: true, Of: func(s *nbd.Stats) float64 { return float64(s.MaxMemory) }},
	}
	for i := range nbd.Commands {
		command := nbd.CommandName(i)
		all = append(all,
			metric{
				Name: "extentd.nbd.requests", Unit: "{request}", Help: "Requests over NBD that were answered.", Labels: labels{"command": command},
				Of: func(s *nbd.Stats) float64 { return float64(s.Commands[i].Requests) },
			},
			metric{
				Name: "extentd.nbd.errors", Unit: "{request}", Help: "Requests over NBD that were answered with an error.", Labels: labels{"command": command},
				Of: func(s *nbd.Stats) float64 { return float64(s.Commands[i].Errors) },
			},
			metric{
				Name: "extentd.nbd.bytes", Unit: "By", Help: "Bytes that requests over NBD read or wrote, or were about.", Labels: labels{"command": command},
				Of: func(s *nbd.Stats) float64 { return float64(s.Commands[i].Bytes) },
			},
		)
	}
	return all
}
