package api

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

func TestProblemTable(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		name   string
	}{
		{storage.ErrNotFound, 404, "not-found"},
		{storage.ErrMisaligned, 400, "misaligned"},
		{storage.ErrOutOfRange, 400, "out-of-range"},
		{storage.ErrBusy, 409, "image-busy"},
		{storage.ErrExists, 409, "exists"},
		{storage.ErrConflict, 409, "conflict"},
		{storage.ErrReadOnly, 403, "read-only"},
		{storage.ErrNoSpace, 507, "no-space"},
		{storage.ErrOutOfService, 500, "io-error"},
		{fmt.Errorf("%w: %w", storage.ErrOutOfService, storage.ErrNoSpace), 500, "io-error"},
		{storage.ErrChanged, 500, "io-error"},
		{&storage.InvalidError{Field: "x", Detail: "is odd"}, 400, "invalid-request"},
		{service.ErrPrecondition, 412, "precondition-failed"},
		{&tooLargeError{5, "bytes"}, 413, "too-large"},
		{errMedia, 415, "unsupported-media-type"},
		{&service.BatchError{Applied: 3, Err: fmt.Errorf("%w: x", storage.ErrConflict)}, 409, "conflict"},
		{storage.ErrCorrupt, 422, "corrupt-image"},
		{storage.ErrBackingUnavailable, 422, "backing-unavailable"},
		{storage.ErrUnsupported, 422, "unsupported-feature"},
		{storage.ErrRefused, 422, "refused"},
		{storage.ErrClosed, 500, "internal"},
		{storage.ErrContract, 500, "internal"},
		{service.ErrCursor, 400, "invalid-request"},
		{invalid("x", ruleUnknown, "y"), 400, "invalid-request"},
		{&InvalidParamFormatError{ParamName: "image", Err: errors.New("y")}, 400, "invalid-request"},
		{&TooManyValuesForParamError{ParamName: "If-Match", Count: 2}, 400, "invalid-request"},
		{&rangeError{100, "outside"}, 416, "out-of-range"},
		{errHost, 403, "forbidden"},
		{errMethod, 405, "method-not-allowed"},
		{errPrecondition, 412, "precondition-failed"},
		{errNotReady, 503, "not-ready"},
		{syscall.EIO, 500, "io-error"},
		{io.ErrUnexpectedEOF, 500, "io-error"},
		{&fs.PathError{Op: "open", Path: "/srv/secret", Err: syscall.EACCES}, 500, "io-error"},
		{errors.New("anything"), 500, "internal"},
		// A cause of the operating system does not hide what it means.
		{fmt.Errorf("%w: %w", storage.ErrBackingUnavailable, syscall.ENOENT), 422, "backing-unavailable"},
	} {
		wrapped := fmt.Errorf("image %q: %w", "vm.qcow2", test.err)
		p := problemOf(wrapped, "/v1/images/vm.qcow2", "id-1")
		if p.Status != test.status || p.Type != "/problems/"+test.name {
			t.Errorf("%v: %d %s, want %d %s", test.err, p.Status, p.Type, test.status, test.name)
		}
		if p.Title == "" || p.Detail == "" || p.Instance != "/v1/images/vm.qcow2" || p.RequestId == nil || *p.RequestId != "id-1" {
			t.Errorf("%v: %+v", test.err, p)
		}
		if secret := p.Status == 500; secret != strings.Contains(p.Detail, "id-1") || secret && strings.Contains(p.Detail, "vm.qcow2") {
			t.Errorf("%v: detail %q", test.err, p.Detail)
		}
		if (p.Errors != nil) != (test.name == "invalid-request") {
			t.Errorf("%v: errors %v", test.err, p.Errors)
		}
	}
}

func TestProblemMembers(t *testing.T) {
	p := problemOf(fmt.Errorf("x: %w", &storage.MisalignedError{Minimum: 512, Offset: 100, Length: 7}), "/", "")
	if p.Minimum == nil || *p.Minimum != 512 || p.Offset == nil || *p.Offset != 100 || p.Length == nil || *p.Length != 7 {
		t.Errorf("misaligned: %+v", p)
	}
	p = problemOf(fmt.Errorf("x: %w", &storage.InvalidError{Field: "cluster_size", Detail: "is 3"}), "/", "")
	if p.Errors == nil || len(*p.Errors) != 1 || (*p.Errors)[0] != (FieldError{"cluster_size", "value", "is 3"}) || p.Detail != "cluster_size: is 3" {
		t.Errorf("an option: %+v", p)
	}
	p = problemOf(&service.BatchError{Applied: 0, Err: &storage.MisalignedError{Minimum: 65536, Offset: 1, Length: 7}}, "/", "")
	if p.Applied == nil || *p.Applied != 0 || p.Minimum == nil || *p.Minimum != 65536 {
		t.Errorf("a batch: %+v", p)
	}
	if p := problemOf(&tooLargeError{5, "updates"}, "/", ""); p.Limit == nil || *p.Limit != 5 {
		t.Errorf("413: %+v", p)
	}
	if p := problemOf(&rangeError{100, "outside"}, "/", ""); p.Size == nil || *p.Size != 100 {
		t.Errorf("416: %+v", p)
	}
}

// Details are one line of text without paths of the host.
func TestProblemDetail(t *testing.T) {
	path := &fs.PathError{Op: "open", Path: "/srv/images/secret.raw", Err: os.ErrPermission}
	for _, err := range []error{
		fmt.Errorf("%w: %w", storage.ErrRefused, path),
		errors.Join(storage.ErrCorrupt, path),
		path,
	} {
		if p := problemOf(err, "/", "id"); strings.Contains(p.Detail, "/srv") {
			t.Errorf("%v: detail %q", err, p.Detail)
		}
	}
	joined := errors.Join(fmt.Errorf("bad name \xff: %w", storage.ErrCorrupt), errors.New("close failed"))
	if p := problemOf(joined, "/", "id"); p.Detail != "bad name \uFFFD: corrupt image; close failed" {
		t.Errorf("detail %q", p.Detail)
	}
}

// The contract lists every type of problem, and no other.
func TestProblemTypesAreInTheContract(t *testing.T) {
	spec, err := os.ReadFile("../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(spec), "`/problems/` and one of:")
	if !found {
		t.Fatal("openapi.yaml does not list the types")
	}
	list, _, _ = strings.Cut(list, ".\n")
	listed := map[string]bool{}
	for _, name := range strings.Split(list, ",") {
		listed[strings.Trim(name, " \n`")] = true
	}
	for _, k := range kinds {
		if !listed[k.name] {
			t.Errorf("openapi.yaml does not list %s", k.name)
		}
	}
	for name := range listed {
		known := false
		for _, k := range kinds {
			known = known || k.name == name
		}
		if !known {
			t.Errorf("openapi.yaml lists %q, which no error has", name)
		}
	}
}
