import Foundation

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// One request and its answer's bytes as they arrive.
///
/// A delegate, because Linux's `URLSession` has no `bytes(for:)`. Its methods come one at a time, on the session's
/// own queue.
final class HTTPExchange: NSObject, URLSessionDataDelegate, @unchecked Sendable {
    private let continuation: AsyncThrowingStream<Data, any Error>.Continuation
    private var refusal: (status: Int, body: Data)?

    private init(_ continuation: AsyncThrowingStream<Data, any Error>.Continuation) {
        self.continuation = continuation
    }

    /// Sends `request`; the stream throws ``APIError`` for a status other than 2xx, and `URLError`.
    ///
    /// The connection is closed when the stream ends, when the task that reads it is cancelled, and when it is dropped.
    static func send(_ request: URLRequest) -> AsyncThrowingStream<Data, any Error> {
        AsyncThrowingStream { continuation in
            let session = URLSession(
                configuration: configuration, delegate: HTTPExchange(continuation), delegateQueue: nil)
            let task = session.dataTask(with: request)
            continuation.onTermination = { _ in
                task.cancel()
                session.finishTasksAndInvalidate()
            }
            task.resume()
        }
    }

    /// Neither proxies nor cookies nor caches: the server is on this machine. A model may think for long before its
    /// first byte, so there are no timeouts either: who loses patience cancels.
    private static var configuration: URLSessionConfiguration {
        let configuration = URLSessionConfiguration.ephemeral
        configuration.connectionProxyDictionary = [:]
        configuration.urlCache = nil
        configuration.httpCookieStorage = nil
        configuration.timeoutIntervalForRequest = 7 * 24 * 3600
        return configuration
    }

    func urlSession(
        _ session: URLSession, dataTask: URLSessionDataTask, didReceive response: URLResponse,
        completionHandler: @escaping @Sendable (URLSession.ResponseDisposition) -> Void
    ) {
        let status = (response as? HTTPURLResponse)?.statusCode ?? 0
        if !(200..<300).contains(status) { refusal = (status, Data()) }
        completionHandler(.allow)
    }

    func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        if refusal == nil {
            continuation.yield(data)
        } else {
            refusal?.body.append(data)
        }
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?) {
        if let error {
            let cancelled = (error as? URLError)?.code == .cancelled
            continuation.finish(throwing: cancelled ? CancellationError() : error)
        } else if let refusal {
            continuation.finish(throwing: APIError(status: refusal.status, body: refusal.body))
        } else {
            continuation.finish()
        }
    }
}
