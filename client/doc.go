// Package client speaks to an extentd server.
//
// [Dial] is where to begin: a [Server] authenticates, and tries again what fails in
// passing; a [Disk] is one of its images, which is read, mapped and written to in
// streams.
//
//	s, err := client.Dial(client.Options{URL: "https://store.example", TokenFile: "token"})
//	disk := s.Disk("vm.qcow2")
//	image, err := disk.Describe(ctx)
//	err = disk.WriteRangeTo(ctx, file, 0, image.Size)
//
// It guarantees that a range or a map that ends without an error is whole, that no
// more memory is used for a long one than for a short one, that a request which may
// have been done is sent again only if a second one changes nothing, and that what
// authenticates stands in no error. It does not guarantee that a range is of one
// time, unless [Disk.IfMatch] demands that.
//
// # The generated client
//
// What lies below is generated from openapi.yaml, which says what every call does.
// [Server.API] is one that authenticates; [NewClient] makes one that does not.
// [ClientWithResponses] decodes answers, and is right for images, limits and pages of
// a map:
//
//	c, err := client.NewClientWithResponses("http://127.0.0.1:7080")
//	answer, err := c.GetImageWithResponse(ctx, "vm.qcow2")
//	size := answer.JSON200.Size
//
// [Client] returns the response as it comes. GetDataWithResponse and
// GetExtentsWithResponse hold the whole body in memory. A Range that a server ignores
// is answered with status 200 and the whole image: look at the status. A body that
// breaks off ends with an error, not with [io.EOF]. Bytes that are written are read as
// they are sent; for what is no [bytes.Reader], set ContentLength in a RequestEditorFn:
// what does not fit is refused beforehand then.
package client
