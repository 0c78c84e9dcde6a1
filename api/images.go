package api

import (
	"context"
	"net/url"

	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// defaultImages is how many images a page has if nobody says.
const defaultImages = 100

var _ StrictServerInterface = (*server)(nil)

// ListImages implements GET /v1/images.
func (s *server) ListImages(ctx context.Context, request ListImagesRequestObject) (ListImagesResponseObject, error) {
	limit := defaultImages
	if l := request.Params.Limit; l != nil {
		limit = *l
	}
	cursor := ""
	if c := request.Params.Cursor; c != nil {
		cursor = *c
	}
	caller := auth.FromContext(ctx)
	page, err := s.svc.List(ctx, cursor, limit, func(name string) bool { return caller.May(auth.Map, name) })
	if err != nil {
		return nil, err
	}
	list := ImageList{Images: make([]ImageEntry, len(page.Entries)), Next: unlessEmpty(page.Next)}
	for i, e := range page.Entries {
		list.Images[i] = s.entryOf(ctx, e)
	}
	return ListImages200JSONResponse(list), nil
}

// entryOf is what a list says of one image, or the problem with it.
func (s *server) entryOf(ctx context.Context, e service.Entry) ImageEntry {
	if e.Err != nil {
		p := problemOf(e.Err, "/v1/images/"+url.PathEscape(e.Name), callOf(ctx).id)
		s.logFailure(ctx, p, e.Err)
		return ImageEntry{Name: e.Name, Format: e.Format, Problem: &p}
	}
	img := imageOf(e.Info)
	return ImageEntry{
		Name: img.Name, Format: img.Format, Size: &img.Size, Allocated: &img.Allocated, ReadOnly: &img.ReadOnly,
		Generation: &img.Generation, DataGeneration: &img.DataGeneration,
		Limits: &img.Limits, Layers: &img.Layers, Qcow2: img.Qcow2,
	}
}

// GetImage implements GET /v1/images/{image}.
func (s *server) GetImage(ctx context.Context, request GetImageRequestObject) (GetImageResponseObject, error) {
	img, err := s.describeImage(ctx, request.Image)
	if err != nil {
		return nil, err
	}
	return GetImage200JSONResponse(img), nil
}

// GetLimits implements GET /v1/images/{image}/limits.
func (s *server) GetLimits(ctx context.Context, request GetLimitsRequestObject) (GetLimitsResponseObject, error) {
	h, err := s.acquire(ctx, request.Image)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	limits, err := h.Device().Limits(ctx)
	if err != nil {
		return nil, err
	}
	return GetLimits200JSONResponse(limitsOf(limits)), nil
}

func imageOf(i *service.Info) Image {
	img := Image{
		Name: i.Name, Format: i.Format, Size: i.Size, Allocated: i.Allocated, ReadOnly: i.ReadOnly,
		Generation: i.Generation, DataGeneration: i.DataGeneration,
		Limits: limitsOf(i.Limits), Layers: make([]Layer, len(i.Layers)),
	}
	for n, l := range i.Layers {
		img.Layers[n] = Layer{
			Depth: l.Depth, Format: l.Format, Node: l.Node, Size: l.Size,
			BackingFile: unlessEmpty(l.BackingFile), BackingFormat: unlessEmpty(l.BackingFormat),
		}
		if l.ClusterSize > 0 {
			img.Layers[n].ClusterSize = &l.ClusterSize
		}
		img.Layers[n].Graph = graphOf(l.Graph)
	}
	if i.QCOW2 != nil {
		img.Qcow2 = qcow2Of(i.QCOW2)
	}
	return img
}

func graphOf(nodes []service.NodeInfo) *[]GraphNode {
	if len(nodes) == 0 {
		return nil
	}
	graph := make([]GraphNode, len(nodes))
	for i, n := range nodes {
		graph[i] = GraphNode{Kind: n.Kind, Node: n.Name, Limits: limitsOf(n.Limits)}
		if len(n.Counters) == 0 {
			continue
		}
		counters := make(map[string]int64, len(n.Counters))
		for _, c := range n.Counters {
			counters[c.Name] = c.Value
		}
		graph[i].Counters = &counters
	}
	return &graph
}

func limitsOf(l storage.Limits) Limits {
	return Limits{
		Minimum: l.Minimum, Preferred: l.Preferred, MaxData: l.MaxData,
		MaxTrim: l.MaxTrim, MaxZero: l.MaxZero, MaxCache: l.MaxCache,
	}
}

func qcow2Of(q *service.QCOW2) *QCOW2 {
	out := &QCOW2{
		Version: q.Version, ClusterSize: q.ClusterSize, RefcountBits: q.RefcountBits, CompressionType: q.CompressionType,
		ExtendedL2: q.ExtendedL2, LazyRefcounts: q.LazyRefcounts, Dirty: q.Dirty, Corrupt: q.Corrupt,
		DataFile: unlessEmpty(q.DataFile), DataFileRaw: q.DataFileRaw, Encryption: unlessEmpty(q.Encryption),
		Snapshots: make([]Snapshot, len(q.Snapshots)), Bitmaps: bitmapsOf(q.Bitmaps),
	}
	for i, s := range q.Snapshots {
		out.Snapshots[i] = snapshotOf(&s)
	}
	return out
}

// unlessEmpty is for members that are absent when they are empty.
func unlessEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
