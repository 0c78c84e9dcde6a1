// Package client speaks to an extentd server. It is generated from
// openapi.yaml, which says what every call does.
//
// [ClientWithResponses] decodes answers, and is right for images, limits and
// pages of a map:
//
//	c, err := client.NewClientWithResponses("http://127.0.0.1:7080")
//	answer, err := c.GetImageWithResponse(ctx, "vm.qcow2")
//	size := answer.JSON200.Size
//
// [Client] returns the response as it comes. Use it for data and for maps as
// NDJSON, which are streamed: GetDataWithResponse and GetExtentsWithResponse
// hold the whole body in memory.
//
//	part := "bytes=0-65535"
//	resp, err := c.GetData(ctx, "vm.qcow2", &client.GetDataParams{Range: &part})
//	if err == nil && resp.StatusCode == http.StatusPartialContent {
//		_, err = io.Copy(file, resp.Body)
//	}
//
// Bytes that are written are read as they are sent. A [bytes.Reader] tells its
// length; for a file, set ContentLength in a RequestEditorFn: what does not fit is
// refused beforehand then.
//
//	at := "bytes 0-65535/*"
//	done, err := c.PutDataWithBodyWithResponse(ctx, "vm.qcow2",
//		&client.PutDataParams{ContentRange: &at}, "application/octet-stream", bytes.NewReader(p))
//	ok := err == nil && done.StatusCode() == http.StatusNoContent
//
// A Range that a server ignores is answered with status 200 and the whole image:
// look at the status. A body that breaks off ends with an error, not with
// [io.EOF]. To go on with it, ask for the rest with If-Range and the ETag of the
// first answer.
package client
