package block

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/extentd/extentd/storage"
)

const (
	// jobSize is how many unpacked bytes a job makes, at least one unit: with
	// 64 KiB clusters a run of four.
	jobSize = 256 << 10
	// maxWorkers bounds the goroutines of one stream.
	maxWorkers = 8
)

// aheadOf returns one with as many workers as there are cores, or fewer where
// there is no plenty of memory; nil if not even for one.
func aheadOf(ctx context.Context, d *Device, unit int64, memory *holding) *ahead {
	job := max(unit, jobSize)
	for workers := min(runtime.GOMAXPROCS(0), maxWorkers); workers > 0; workers /= 2 {
		packed := int64(workers) * (unpackingParts - 1) * job
		if memory.spare(int64(jobsOf(workers))*job + packed) {
			return newAhead(ctx, d, workers)
		}
	}
	return nil
}

// jobsOf is how many jobs there are at once, so that each worker has one in hand
// and one waiting.
func jobsOf(workers int) int { return 2*workers + 1 }

// An ahead unpacks compressed units before they are asked for, on all cores.
// It belongs to a queue, which stops it.
type ahead struct {
	d      *Device
	ctx    context.Context // of the stream, ended by stop
	cancel context.CancelFunc
	work   chan *job
	wg     sync.WaitGroup
	most   int    // jobs at once
	jobs   int    // jobs that exist and are not spare
	spare  []*job // used again
}

func newAhead(ctx context.Context, d *Device, workers int) *ahead {
	a := &ahead{d: d, most: jobsOf(workers)}
	a.work = make(chan *job, a.most+1)
	a.ctx, a.cancel = context.WithCancel(ctx)
	for range workers {
		a.wg.Go(func() {
			var packed []byte
			for j := range a.work {
				j.err = j.make(a.ctx, a.d, &packed)
				j.ready <- struct{}{}
			}
		})
	}
	return a
}

// free reports whether another job may be begun.
func (a *ahead) free() bool { return a.jobs < a.most }

// job returns an empty job.
func (a *ahead) job(unpacker storage.Unpacker) *job {
	a.jobs++
	var j *job
	if last := len(a.spare) - 1; last >= 0 {
		j, a.spare = a.spare[last], a.spare[:last]
	} else {
		j = &job{ready: make(chan struct{}, 1)}
	}
	j.unpacker, j.unit, j.items, j.err = unpacker, unpacker.PackedUnit(), j.items[:0], nil
	return j
}

// give hands the job to a worker. It does not block: there is room for all jobs.
func (a *ahead) give(j *job) { a.work <- j }

func (a *ahead) recycle(j *job) {
	a.jobs--
	a.spare = append(a.spare, j)
}

func (a *ahead) stop() {
	a.cancel()
	close(a.work)
	a.wg.Wait()
}

// A job is a run of compressed units of one layer, one after the other on the
// guest's side. The first may begin and the last may end inside a unit.
type job struct {
	unpacker storage.Unpacker
	unit     int64
	items    []storage.Mapping
	out      []byte        // a unit an item
	err      error         // of unpack, to be read after ready
	ready    chan struct{} // one send when the job is done
}

// takes reports whether m goes on where the job's last unit ends.
func (j *job) takes(m *storage.Mapping) bool {
	last := &j.items[len(j.items)-1]
	return last.Depth == m.Depth && last.End() == m.Offset && m.Offset&(j.unit-1) == 0
}

func (j *job) add(m *storage.Mapping) { j.items = append(j.items, *m) }

func (j *job) full() bool { return int64(len(j.items)+1)*j.unit > jobSize }

// data is what the guest sees of the unpacked units.
func (j *job) data() []byte {
	first, last := &j.items[0], &j.items[len(j.items)-1]
	skip := first.Offset & (j.unit - 1)
	return j.out[skip : skip+last.End()-first.Offset]
}

// make fills out. It pins the layer for itself, since who found the items has
// returned its pin. They are good if nothing could be written until then; else
// what is there is looked up anew.
func (j *job) make(ctx context.Context, d *Device, buf *[]byte) error {
	if n := int64(len(j.items)) * j.unit; int64(cap(j.out)) < n {
		j.out = make([]byte, n)
	} else {
		j.out = j.out[:n]
	}
	if p := d.layers[j.items[0].Depth].pinner; p != nil {
		pin := p.Pin()
		defer p.Unpin(pin)
	}
	if d.moves() {
		return d.readAt(ctx, j.data(), j.items[0].Offset)
	}
	return j.unpack(ctx, buf)
}

// unpack reads the packed bytes of all items, at once where they lie side by
// side, and unpacks each.
func (j *job) unpack(ctx context.Context, buf *[]byte) error {
	lo, hi, together := j.span()
	var packed []byte
	var err error
	if together {
		if packed, err = readPackedBytes(ctx, j.items[0].Node, buf, lo, hi-lo); err != nil {
			return err
		}
	}
	for i := range j.items {
		m := &j.items[i]
		if !together {
			lo = m.NodeOffset
			if packed, err = readPackedBytes(ctx, m.Node, buf, lo, int64(m.PackedLength)); err != nil {
				return err
			}
		}
		from := min(m.NodeOffset-lo, int64(len(packed)))
		src := packed[from:min(from+int64(m.PackedLength), int64(len(packed)))]
		if err := j.unpacker.Unpack(j.out[int64(i)*j.unit:int64(i+1)*j.unit], src); err != nil {
			return fmt.Errorf("%s: compressed cluster at %d: %w", m.Node.Name(), m.NodeOffset, err)
		}
	}
	return nil
}

// span is the range that holds all packed bytes, and whether reading it at once
// wastes nothing to speak of.
func (j *job) span() (lo, hi int64, together bool) {
	lo, hi = j.items[0].NodeOffset, 0
	var sum int64
	for i := range j.items {
		m := &j.items[i]
		if m.Node != j.items[0].Node {
			return 0, 0, false
		}
		lo, hi = min(lo, m.NodeOffset), max(hi, m.NodeOffset+int64(m.PackedLength))
		sum += int64(m.PackedLength)
	}
	return lo, hi, hi-lo <= sum
}
