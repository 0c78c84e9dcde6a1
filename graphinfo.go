package main

import (
	"fmt"
	"strings"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// nodeInfo is a node of an image's graph, with the members that it has in the
// HTTP contract.
type nodeInfo struct {
	Kind     string           `json:"kind"`
	Node     string           `json:"node"`
	Limits   limitsInfo       `json:"limits"`
	Counters map[string]int64 `json:"counters,omitempty"`
}

type limitsInfo struct {
	Minimum   int64 `json:"minimum"`
	Preferred int64 `json:"preferred"`
	MaxData   int64 `json:"max_data"`
	MaxTrim   int64 `json:"max_trim"`
	MaxZero   int64 `json:"max_zero"`
	MaxCache  int64 `json:"max_cache"`
}

// newGraphInfo translates what the service says of a graph.
func newGraphInfo(graph []service.NodeInfo) []nodeInfo {
	var out []nodeInfo
	for _, n := range graph {
		info := nodeInfo{Kind: n.Kind, Node: n.Name, Limits: limitsInfo(n.Limits)}
		for _, c := range n.Counters {
			if info.Counters == nil {
				info.Counters = make(map[string]int64)
			}
			info.Counters[c.Name] = c.Value
		}
		out = append(out, info)
	}
	return out
}

// text is the node as a line for people.
func (n *nodeInfo) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: kind %s", printable(n.Node), n.Kind)
	limits := storage.Limits(n.Limits)
	for which := storage.Minimum; which <= storage.MaxCache; which++ {
		fmt.Fprintf(&b, ", %v %v", which, byteSize(limits.Of(which)))
	}
	return b.String()
}
