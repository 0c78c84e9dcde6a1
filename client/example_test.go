package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/client"
	"github.com/extentd/extentd/service"
)

// exampleServer serves a directory with an empty qcow2 image of 4 MiB, disk.qcow2.
func exampleServer() (url string, stop func()) {
	dir, err := os.MkdirTemp("", "extentd-example-")
	if err != nil {
		log.Fatal(err)
	}
	driver := service.QCOW2Driver()
	opt := service.CreateOptions{CreateRequest: service.CreateRequest{Format: "qcow2", Size: 4 << 20, HasSize: true}}
	if err := service.CreateFile(context.Background(), filepath.Join(dir, "disk.qcow2"), driver, opt); err != nil {
		log.Fatal(err)
	}
	svc, err := service.New(service.Options{Dir: dir, Formats: map[string]service.Driver{"raw": service.RawDriver(), "qcow2": driver}})
	if err != nil {
		log.Fatal(err)
	}
	srv := httptest.NewServer(api.New(svc, api.Options{}))
	return srv.URL, func() {
		srv.Close()
		if err := errors.Join(svc.Close(), os.RemoveAll(dir)); err != nil {
			log.Fatal(err)
		}
	}
}

func ExampleServer_Images() {
	url, stop := exampleServer()
	defer stop()
	s, err := client.Dial(client.Options{URL: url})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	for image, err := range s.Images(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(image.Name, image.Format, *image.Size)
	}
	// Output: disk.qcow2 qcow2 4194304
}

func ExampleDisk_Extents() {
	url, stop := exampleServer()
	defer stop()
	ctx := context.Background()
	s, err := client.Dial(client.Options{URL: url})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	disk := s.Disk("disk.qcow2")
	if _, err := disk.WriteAt(ctx, make([]byte, 65536), 1<<20); err != nil {
		log.Fatal(err)
	}
	for e, err := range disk.Extents(ctx, client.ExtentsOptions{}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Offset, e.Length, "zero:", e.Zero, "allocated:", e.Alloc)
	}
	// Output:
	// 0 1048576 zero: true allocated: false
	// 1048576 65536 zero: false allocated: true
	// 1114112 3080192 zero: true allocated: false
}

// Reading on condition that nobody writes meanwhile.
func ExampleDisk_WriteRangeTo() {
	url, stop := exampleServer()
	defer stop()
	ctx := context.Background()
	s, err := client.Dial(client.Options{URL: url})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	disk := s.Disk("disk.qcow2")
	if _, err := disk.WriteAt(ctx, []byte("hello"), 100); err != nil {
		log.Fatal(err)
	}
	image, err := disk.Describe(ctx)
	if err != nil {
		log.Fatal(err)
	}
	asNow := disk.IfMatch(client.ETag(image.DataGeneration))
	var out bytes.Buffer
	fmt.Println(asNow.WriteRangeTo(ctx, &out, 98, 9), out.String() == "\x00\x00hello\x00\x00")
	if err := disk.Zero(ctx, 0, 65536, false); err != nil {
		log.Fatal(err)
	}
	fmt.Println(client.Kind(asNow.WriteRangeTo(ctx, &out, 98, 9)))
	// Output:
	// <nil> true
	// precondition-failed
}

// An upload that others see all at once.
func ExampleDisk_Publish() {
	url, stop := exampleServer()
	defer stop()
	ctx := context.Background()
	s, err := client.Dial(client.Options{URL: url})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	disk := s.Disk("disk.qcow2")
	data := bytes.Repeat([]byte("extentd!"), 16384)
	if _, err := disk.Publish(ctx, bytes.NewReader(data), 2<<20, int64(len(data))); err != nil {
		log.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := disk.ReadAt(ctx, got, 2<<20); err != nil {
		log.Fatal(err)
	}
	fmt.Println(bytes.Equal(got, data))
	// Output: true
}

// What the server says is wrong.
func ExampleProblem() {
	url, stop := exampleServer()
	defer stop()
	s, err := client.Dial(client.Options{URL: url})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	_, err = s.Disk("missing.raw").Describe(context.Background())
	if p, ok := errors.AsType[*client.Problem](err); ok {
		fmt.Println(p.Status, p.Kind())
	}
	// Output: 404 not-found
}
