package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"testing"
)

// send makes a request with a body and returns the whole answer.
func (s *server) send(method, path string, body []byte, headers ...string) (answer, error) {
	req, err := http.NewRequest(method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: text}, err
}

// sendJSON sends a value as JSON.
func (s *server) sendJSON(method, path string, v any, headers ...string) (answer, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return answer{}, err
	}
	return s.send(method, path, body, append(headers, "Content-Type", "application/json")...)
}

// imagePath is the path of what belongs to an image.
func imagePath(image, rest string) string { return "/v1/images/" + url.PathEscape(image) + rest }

// A refusal is an answer that is not what was asked for.
type refusal struct {
	answer
	problem problem
	request string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%s: status %d: %.500s", r.request, r.status, r.body)
}

// name is the problem's name.
func (r *refusal) name() string { return r.problem.Type[min(len("/problems/"), len(r.problem.Type)):] }

// accepted makes an error of an answer that does not have one of the statuses.
func accepted(request string, a answer, err error, statuses ...int) error {
	if err != nil {
		return fmt.Errorf("%s: %w", request, err)
	}
	if slices.Contains(statuses, a.status) {
		return nil
	}
	r := &refusal{answer: a, request: request}
	_ = json.Unmarshal(a.body, &r.problem)
	return r
}

// put writes a range, durably when flush is true.
func (s *server) put(image string, off int64, p []byte, flush bool, headers ...string) error {
	path := imagePath(image, "/data")
	if flush {
		path += "?flush=true"
	}
	headers = append(headers, "Content-Range", fmt.Sprintf("bytes %d-%d/*", off, off+int64(len(p))-1))
	a, err := s.send(http.MethodPut, path, p, headers...)
	return accepted(fmt.Sprintf("PUT %s of %d bytes at %d", path, len(p), off), a, err, http.StatusNoContent)
}

// post sends an object to a path of an image, and wants 204.
func (s *server) post(image, rest string, v any, headers ...string) error {
	a, err := s.sendJSON(http.MethodPost, imagePath(image, rest), v, headers...)
	return accepted(fmt.Sprintf("POST %s %v", imagePath(image, rest), v), a, err, http.StatusNoContent)
}

func (s *server) zero(image string, off, length int64, anchor bool) error {
	return s.post(image, "/zero", object{"offset": off, "length": length, "anchor": anchor})
}

func (s *server) trim(image string, off, length int64) error {
	return s.post(image, "/trim", object{"offset": off, "length": length})
}

func (s *server) flush(image string) error { return s.post(image, "/flush", object{}) }

// object is a JSON object.
type object = map[string]any

func (s *server) resize(image string, size int64, shrink bool) error {
	body, err := json.Marshal(object{"size": size, "shrink": shrink})
	if err != nil {
		return err
	}
	a, err := s.send(http.MethodPatch, imagePath(image, ""), body, "Content-Type", "application/merge-patch+json")
	return accepted(fmt.Sprintf("PATCH %s to %d", image, size), a, err, http.StatusOK)
}

// read gets a range.
func (s *server) read(image string, off, length int64) ([]byte, error) {
	a, err := s.send(http.MethodGet, imagePath(image, "/data"), nil, "Range", fmt.Sprintf("bytes=%d-%d", off, off+length-1))
	if err := accepted(fmt.Sprintf("GET %s of %d bytes at %d", image, length, off), a, err, http.StatusPartialContent); err != nil {
		return nil, err
	}
	if int64(len(a.body)) != length {
		return nil, fmt.Errorf("GET %s of %d bytes at %d: %d bytes", image, length, off, len(a.body))
	}
	return a.body, nil
}

// A grant is an allocation on the wire.
type grant struct {
	ID         string `json:"id"`
	Length     int64  `json:"length"`
	Contiguous bool   `json:"contiguous"`
	Expires    string `json:"expires"`
	Extents    []struct {
		AllocationOffset int64  `json:"allocation_offset"`
		Length           int64  `json:"length"`
		Node             string `json:"node"`
		NodeOffset       int64  `json:"node_offset"`
	} `json:"extents"`
	Mapped []struct {
		AllocationOffset int64 `json:"allocation_offset"`
		Length           int64 `json:"length"`
	} `json:"mapped"`
}

// allocate asks for an allocation.
func (s *server) allocate(image string, request object) (grant, error) {
	var g grant
	a, err := s.sendJSON(http.MethodPost, imagePath(image, "/allocations"), request)
	if err := accepted(fmt.Sprintf("allocate %v", request), a, err, http.StatusCreated); err != nil {
		return g, err
	}
	if err := decodeStrictly(a.body, &g); err != nil {
		return g, fmt.Errorf("%w\n%s", err, a.body)
	}
	var covered int64
	for _, e := range g.Extents {
		if e.AllocationOffset != covered || e.Length <= 0 {
			return g, fmt.Errorf("the allocation's extents do not follow each other: %s", a.body)
		}
		covered += e.Length
	}
	if covered != g.Length || g.ID == "" || g.Expires == "" || g.Contiguous && len(g.Extents) != 1 {
		return g, fmt.Errorf("the allocation contradicts itself: %s", a.body)
	}
	return g, nil
}

// fill writes into an allocation.
func (s *server) fill(image, id string, off int64, p []byte) error {
	path := imagePath(image, "/allocations/"+id+"/data")
	a, err := s.send(http.MethodPut, path, p, "Content-Range", fmt.Sprintf("bytes %d-%d/*", off, off+int64(len(p))-1))
	return accepted(fmt.Sprintf("PUT %s of %d bytes at %d", path, len(p), off), a, err, http.StatusNoContent)
}

func (s *server) giveBack(image, id string) error {
	a, err := s.send(http.MethodDelete, imagePath(image, "/allocations/"+id), nil)
	return accepted("DELETE allocation "+id, a, err, http.StatusNoContent)
}

// update applies a batch of updates.
func (s *server) update(image string, updates []object, headers ...string) error {
	a, err := s.sendJSON(http.MethodPost, imagePath(image, "/mappings"), object{"updates": updates}, headers...)
	return accepted(fmt.Sprintf("update %v", updates), a, err, http.StatusOK)
}

// target is one update.
func target(off, length int64, kind string, more ...any) object {
	t := object{"kind": kind}
	for i := 0; i < len(more); i += 2 {
		t[more[i].(string)] = more[i+1]
	}
	return object{"offset": off, "length": length, "target": t}
}

// A verdict is what a check found, on the wire.
type verdict struct {
	Corruptions      int64    `json:"corruptions"`
	Leaks            int64    `json:"leaks"`
	CorruptionsFixed int64    `json:"corruptions_fixed"`
	LeaksFixed       int64    `json:"leaks_fixed"`
	Errors           []string `json:"errors"`

	ImageEnd           int64 `json:"image_end_offset"`
	TotalClusters      int64 `json:"total_clusters"`
	AllocatedClusters  int64 `json:"allocated_clusters"`
	FragmentedClusters int64 `json:"fragmented_clusters"`
	CompressedClusters int64 `json:"compressed_clusters"`
}

func (s *server) check(image, repair string) (verdict, error) {
	var v verdict
	a, err := s.sendJSON(http.MethodPost, imagePath(image, "/check"), object{"repair": repair})
	if err := accepted("check "+image, a, err, http.StatusOK); err != nil {
		return v, err
	}
	return v, decodeStrictly(a.body, &v)
}

// must ends the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mustRefuse wants a request to have been refused with a problem.
func mustRefuse(t testing.TB, err error, status int, name string) {
	t.Helper()
	r, ok := err.(*refusal) //nolint:errorlint // made above, never wrapped
	if !ok {
		t.Fatalf("got %v, want %d %s", err, status, name)
	}
	checkProblem(t, r.header, r.body, status, name)
}
